// Replays `start_ns,from,to,bytes` in SimGrid on a star of split-duplex links, without latency and with plain max-min
// shares, and prints the seconds that it took and the simulated moment of its end. Compiled and run by `shoal-sim bench`.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <simgrid/s4u.hpp>
#include <sstream>
#include <string>
#include <vector>

namespace sg4 = simgrid::s4u;

struct Row {
  double start;
  int from, to;
  double bytes;
};

int main(int argc, char **argv) {
  sg4::Engine engine(&argc, argv);
  sg4::Engine::set_config("network/model:CM02");
  sg4::Engine::set_config("network/crosstraffic:0");
  sg4::Engine::set_config("network/bandwidth-factor:1");
  sg4::Engine::set_config("network/latency-factor:1");
  sg4::Engine::set_config("network/TCP-gamma:0");
  sg4::Engine::set_config("network/weight-S:0");
  std::vector<Row> rows;
  int nodes = 0;
  std::ifstream file(argv[1]);
  std::string line;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::stringstream cells(line);
    std::string cell;
    Row row;
    std::getline(cells, cell, ',');
    row.start = std::stod(cell) / 1e9;
    std::getline(cells, cell, ',');
    row.from = std::stoi(cell) + 1;
    std::getline(cells, cell, ',');
    row.to = std::stoi(cell) + 1;
    std::getline(cells, cell, ',');
    row.bytes = std::stod(cell);
    rows.push_back(row);
    nodes = std::max({nodes, row.from + 1, row.to + 1});
  }
  auto begun = std::chrono::steady_clock::now();
  auto *zone = sg4::create_full_zone("star");
  std::vector<sg4::Host *> hosts;
  std::vector<sg4::Link *> ups, downs;
  for (int node = 0; node < nodes; node++) {
    auto name = std::to_string(node);
    hosts.push_back(zone->create_host("h" + name, 1e9));
    ups.push_back(zone->create_link("u" + name, std::stod(argv[2]))->set_latency(0)->seal());
    downs.push_back(zone->create_link("d" + name, std::stod(argv[3]))->set_latency(0)->seal());
  }
  for (int from = 0; from < nodes; from++)
    for (int to = 0; to < nodes; to++)
      if (from != to)
        zone->add_route(hosts[from]->get_netpoint(), hosts[to]->get_netpoint(), nullptr, nullptr,
                        {sg4::LinkInRoute(ups[from]), sg4::LinkInRoute(downs[to])}, false);
  zone->seal();
  sg4::Actor::create("replay", hosts[0], [&] {
    for (const Row &row : rows) {
      double wait = row.start - sg4::Engine::get_clock();
      if (wait > 0)
        sg4::this_actor::sleep_for(wait);
      sg4::Comm::sendto_init(hosts[row.from], hosts[row.to])->set_payload_size(row.bytes)->detach();
    }
  });
  engine.run();
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  std::printf("%.6f %.9f\n", took.count(), sg4::Engine::get_clock());
}

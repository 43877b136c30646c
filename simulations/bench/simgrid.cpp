// Replays `start_ns,from,to,bytes` in SimGrid on a star with the links `node,up,down`, split-duplex, without latency and
// with plain max-min shares, and prints the seconds that it took and the simulated moment of its end. Compiled and run by
// `shoal-sim bench`.
#include <chrono>
#include <cstdio>
#include <fstream>
#include <simgrid/s4u.hpp>
#include <sstream>
#include <string>
#include <vector>
#include <xbt/log.h>

namespace sg4 = simgrid::s4u;

struct Row {
  double start;
  int from, to;
  double bytes;
};

int main(int argc, char **argv) {
  sg4::Engine engine(&argc, argv);
  xbt_log_control_set("root.thres:critical");
  sg4::Engine::set_config("network/model:CM02");
  sg4::Engine::set_config("network/crosstraffic:0");
  sg4::Engine::set_config("network/bandwidth-factor:1");
  sg4::Engine::set_config("network/latency-factor:1");
  sg4::Engine::set_config("network/TCP-gamma:0");
  sg4::Engine::set_config("network/weight-S:0");
  std::vector<Row> rows;
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
  }
  auto *zone = sg4::create_full_zone("star");
  std::vector<sg4::Host *> hosts;
  std::vector<sg4::Link *> ups, downs;
  std::ifstream links(argv[2]);
  std::getline(links, line);
  while (std::getline(links, line)) {
    std::stringstream cells(line);
    std::string name, up, down;
    std::getline(cells, name, ',');
    std::getline(cells, up, ',');
    std::getline(cells, down, ',');
    hosts.push_back(zone->create_host("h" + name, 1e9));
    ups.push_back(zone->create_link("u" + name, std::stod(up))->set_latency(0)->seal());
    downs.push_back(zone->create_link("d" + name, std::stod(down))->set_latency(0)->seal());
  }
  int nodes = static_cast<int>(hosts.size());
  for (int from = 0; from < nodes; from++)
    for (int to = 0; to < nodes; to++)
      if (from != to)
        zone->add_route(hosts[from]->get_netpoint(), hosts[to]->get_netpoint(), nullptr, nullptr,
                        {sg4::LinkInRoute(ups[from]), sg4::LinkInRoute(downs[to])}, false);
  zone->seal();
  // Building the platform is not what is compared.
  auto begun = std::chrono::steady_clock::now();
  sg4::Actor::create("replay", hosts[0], [&] {
    for (const Row &row : rows) {
      double wait = row.start - sg4::Engine::get_clock();
      if (wait > 1e-9) // what it can tell apart
        sg4::this_actor::sleep_for(wait);
      sg4::Comm::sendto_init(hosts[row.from], hosts[row.to])->set_payload_size(row.bytes)->detach();
    }
  });
  engine.run();
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  std::printf("%.6f %.9f\n", took.count(), sg4::Engine::get_clock());
}

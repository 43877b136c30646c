//! Being built.
mod ledger;
mod math;
mod network;
mod num;
mod plan;
mod queue;
mod rng;
mod scenario;
mod slab;
mod topology;
mod world;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let scenario = scenario::load::Source::find(&args[0])?.read(&args[2..])?;
    let policy = <plan::Policy as clap::ValueEnum>::from_str(&args[1], true).unwrap();
    let plan = plan::Plan::new(&scenario, 1, policy, network::Rates::Exact { epsilon: 1e-3 })?;
    let spots = scenario::spots::Spots::of(&scenario);
    let start = std::time::Instant::now();
    let mut world = world::World::new(plan, spots);
    let ended = world.run(&mut ());
    let wall = start.elapsed();
    let m = &world.meter;
    let mut arrived: Vec<u64> = m.logs.iter().map(|l| l.arrived).collect();
    arrived.sort();
    let n = arrived.len();
    println!(
        "{ended:?} {:.3} s sim, wall {:.2?}, events {}, hash {:016x}",
        num::secs(world.now),
        wall,
        world.events,
        world.hash
    );
    println!(
        "arrived p50 {:.3} p99 {:.3} max {:.3}; ready {}",
        num::secs(arrived[n / 2]),
        num::secs(arrived[n * 99 / 100]),
        num::secs(arrived[n - 1]),
        m.ready
    );
    let w = world.plan.wanted_bytes() as f64;
    println!(
        "origin copies {:.3}, cross copies {:.3}, transfers {}, useful/moved {:.4}, dup {}, news {}, relax/transfer {:.2} unsettled {}",
        m.origin_bytes as f64 / w,
        m.cross_bytes as f64 / w,
        m.transfers,
        m.useful_bytes as f64 / (m.origin_bytes + m.peer_bytes + m.mirror_bytes) as f64,
        m.duplicates,
        m.news,
        world.network.relaxations as f64 / m.transfers as f64,
        world.network.unsettled
    );
    let mut s = shoal_transfer::stats::Stats::default();
    for l in &m.logs {
        s.timeouts += l.stats.timeouts;
        s.refusals += l.stats.refusals;
        s.steals += l.stats.steals;
        s.seeder_asks += l.stats.seeder_asks;
        s.seeder_deferrals += l.stats.seeder_deferrals;
        s.fetches += l.stats.fetches;
        s.crossings += l.stats.crossings;
        s.dials_failed += l.stats.dials_failed;
        s.bans += l.stats.bans;
    }
    println!("{s:?} stalled {} open {} waiting {}", m.stalled, world.open_asks(), world.waiting());
    Ok(())
}

//! Scenario tests: many nodes in memory, on links of limited rate, in virtual time.

mod chaos;
mod faults;
mod limits;
mod mesh;
mod regions;
mod swarm;
mod watchdog;

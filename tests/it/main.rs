//! The end-to-end tests: one binary, so that what they share is linked once.
mod attack_membership;
mod bad_input;
mod cli;
mod clients;
mod conformance;
mod corruption;
mod crowd;
mod disk_full;
mod harness;
mod images;
mod memory;
mod outage;
mod push_pull;
mod registry_crash;
mod restart;
mod swarm;
mod tidy;

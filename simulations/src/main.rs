//! Being built.
mod math;
mod network;
mod num;
mod queue;
mod rng;
fn main() {}

//! The registry as its clients see it: a seeder in this process, on a free port and a directory of its own.

mod client;
mod fuzz;
mod operation;
mod process;
mod reads;
mod uploads;
mod vendor;

//! The registry as its clients see it: a seeder in this process, on a free port and a directory of its own.

mod client;
mod fuzz;
mod login;
mod operation;
mod process;
mod quotas;
mod reads;
#[path = "../../http/src/tests/secure_client.rs"]
pub(crate) mod secure_client;
mod tls;
mod uploads;
mod vendor;

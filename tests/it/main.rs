//! The end-to-end tests: one binary, so that what they share is linked once.
mod clients;
mod harness;
mod images;
mod tidy;

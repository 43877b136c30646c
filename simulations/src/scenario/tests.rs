//! Scenarios that ship, and what is refused.

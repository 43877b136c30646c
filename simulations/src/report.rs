//! The report: one HTML file with drawings in it, without scripts, for the screen in light and dark and for paper.

mod charts;
mod page;
mod svg;

pub(crate) use page::{page, sweep_page};

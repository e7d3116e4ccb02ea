//! Real programs, run to their true end. What must hold is the name of each test.
#![allow(clippy::unwrap_used)] // helpers count as tests too

mod ending;
mod input;
mod output;
mod refusal;
mod support;

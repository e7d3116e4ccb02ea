//! Development only: whole systems of real processes, faults of every kind, and the checker that judges what came of
//! it. Nothing that ships may depend on it.
//!
//! Start reading at [`plan`] (what a run will do), then [`run`] (how it does it), [`system`] and [`link`] (what can
//! be broken), and [`mod@check`] (what must hold all the same). `bench/README.md` tells how to use it.

pub mod check;
mod clients;
mod faults;
pub mod frames;
pub mod link;
pub mod memory;
pub mod parsers;
pub mod plan;
pub mod process;
pub mod random;
pub mod run;
pub mod system;
mod watch;
pub mod witness;
pub mod wrong_clock;

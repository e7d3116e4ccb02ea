//! A deterministic simulation of whole lives of an agent: the code that ships, on a simulated broker, disk, clock and
//! keeper, with programs that end by chance. One seed tells all that happens.
//!
//! What is real: all of this crate, the reading and writing of `bus` above the connection, the journal down to the
//! bytes on its disk, the agent's side of the keeper. What is simulated stands in `net` (the broker and the links), in
//! the feature `simulate` of `bus`, `journal` and `keeper` (connection, clock, dice, disk, keeper), and in `world`
//! (machines, programs, the operator, and what befalls them). `check` says what must hold afterwards. Where a real
//! broker can be had, the real one is used: see the tests of `steward` and `testkit`.
//!
//! ```text
//! cargo nextest run -p steward-agent simulation                                                     as in CI
//! STEWARD_SIM_FIRST=7000 STEWARD_SIM_SEEDS=50000 cargo test -p steward-agent --lib more_seeds -- --ignored --nocapture
//! STEWARD_SIM_SEED=4711 cargo test -p steward-agent --lib one_seed -- --ignored --nocapture         with its whole trace
//! ```

mod check;
mod net;
mod trace;
mod world;

use message::Timestamp;

use world::World;

/// How many seeds are tried where nobody says otherwise: as many as a slow core gets through in a minute.
const SEEDS: u64 = 2_000;
const PARTS: u64 = 4;

/// The broker's time, `ms` after the beginning of a simulation.
fn at(ms: i64) -> Timestamp {
    Timestamp::from_ms(1_800_000_000_000 + ms)
}

fn run(seed: u64, traced: bool) -> (World, Vec<String>) {
    let mut world = World::new(seed, traced);
    world.live();
    let breaches = check::check(&world);
    (world, breaches)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// What can be told of a run that went wrong: what does not hold, and what happened to the orders that it is about.
fn told(seed: u64) -> String {
    let (world, breaches) = run(seed, true);
    let words = breaches.iter().flat_map(|breach| breach.split([' ', ':', ',']));
    let mut about: Vec<String> = words.filter(|word| word.len() == 32).map(ToOwned::to_owned).collect();
    about.extend(
        [
            "agent of",
            "link of",
            "keeper of",
            "disk of",
            "broker",
            "set back",
            "snapshot",
            "clone",
            "REPLIES full",
            "peace",
        ]
        .map(ToOwned::to_owned),
    );
    format!("seed {seed} ({:?}):\n  {}\n{}", world.calamity, breaches.join("\n  "), world.trace.lines(&about))
}

/// Runs these seeds, unless one alone is asked for.
fn run_all(first: u64, seeds: u64) {
    let (mut orders, mut begun, mut wrong) = (0, 0, Vec::new());
    let since = std::time::Instant::now();
    for seed in first..first + seeds {
        let (world, breaches) = run(seed, false);
        orders += world.orders.len();
        begun += world.lives.len();
        if !breaches.is_empty() {
            println!("{}\n", told(seed));
            wrong.push(seed);
            if wrong.len() >= 5 {
                break;
            }
        }
    }
    println!("seeds {first} to {}: {orders} orders, {begun} programs, {:?}", first + seeds - 1, since.elapsed());
    assert!(wrong.is_empty(), "seeds {wrong:?} went wrong");
}

/// One part of the seeds; in several, so that the cores of a machine share them.
fn part(number: u64) {
    let parts = SEEDS / PARTS;
    run_all(number * parts, parts);
}

#[test]
fn whatever_happens_every_order_has_one_true_end_1() {
    part(0);
}

#[test]
fn whatever_happens_every_order_has_one_true_end_2() {
    part(1);
}

#[test]
fn whatever_happens_every_order_has_one_true_end_3() {
    part(2);
}

#[test]
fn whatever_happens_every_order_has_one_true_end_4() {
    part(3);
}

/// Seeds that once went wrong: without looking back in a journal that was set back (5, 252); when a state was told after
/// the end that followed it (136, 208); when a clone that had gone was not noticed (1010), or was at it (1341, 1418);
/// when the floor of one store was told to another (561, 1995, 5248); when orders of a store that is gone, come live and not
/// looked at yet, counted in the next one (1605).
#[test]
fn what_once_went_wrong_goes_well() {
    for seed in [5, 252, 136, 208, 1010, 1341, 1418, 561, 1995, 5248, 1605] {
        run_all(seed, 1);
    }
}

#[test]
#[ignore = "as many seeds as STEWARD_SIM_SEEDS says"]
fn more_seeds() {
    run_all(number("STEWARD_SIM_FIRST").unwrap_or(SEEDS), number("STEWARD_SIM_SEEDS").unwrap_or(SEEDS));
}

#[test]
#[ignore = "the one seed that STEWARD_SIM_SEED says, with all that happens"]
fn one_seed() {
    let seed = number("STEWARD_SIM_SEED").unwrap_or(0);
    let (world, breaches) = run(seed, true);
    println!("{}", world.trace.lines(&[]));
    assert!(breaches.is_empty(), "seed {seed} ({:?}): {breaches:#?}", world.calamity);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let (one, _) = run(seed, true);
        let (other, _) = run(seed, true);
        if one.trace.digest() != other.trace.digest() {
            let (one, other) = (one.trace.lines(&[]), other.trace.lines(&[]));
            let at = one.lines().zip(other.lines()).position(|(one, other)| one != other).unwrap_or(0);
            let part = |text: &str| text.lines().skip(at.saturating_sub(12)).take(15).collect::<Vec<_>>().join("\n");
            panic!("seed {seed} at line {at}:\n{}\n-- or --\n{}", part(&one), part(&other));
        }
    }
}

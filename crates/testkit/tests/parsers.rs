//! Every parser over its committed seeds and over what a seeded mutator makes of them.
//!
//! `PARSER_INPUTS` says how many inputs each parser gets, `PARSER_SEED` what they are drawn from.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use testkit::parsers::{TARGETS, Target, mutate};
use testkit::random::Random;

fn seeds(target: Target) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target.name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn no_parser_breaks_down_whatever_it_is_given() {
    let (inputs, seed) = (number("PARSER_INPUTS", 5000), number("PARSER_SEED", 1));
    for target in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        let mut random = Random::new(seed);
        let try_one = |bytes: &[u8]| {
            assert!(
                catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).is_ok(),
                "{} broke down over {:?}",
                target.name,
                String::from_utf8_lossy(bytes)
            );
        };
        seeds.iter().for_each(|seed| try_one(seed));
        for _ in 0..inputs {
            let (one, other) = (&seeds[random.below(seeds.len())], &seeds[random.below(seeds.len())]);
            try_one(&mutate(&mut random, one, other));
        }
    }
}

/// Whose a new token or a receipt says that it is.
fn whose(bytes: &[u8]) -> message::PublicKey {
    let read: serde_json::Value = serde_json::from_slice(bytes).unwrap();
    message::PublicKey::parse(read["key"].as_str().unwrap()).unwrap()
}

#[test]
fn every_parser_has_a_target_of_libfuzzer_and_the_other_way_round() {
    let fuzz = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    let mut files: Vec<String> = std::fs::read_dir(fuzz.join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(files, names);
    for name in names {
        let calls = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(calls.contains(&format!("parsers::{name}(")), "{name} hands its bytes to another parser");
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in fuzz/Cargo.toml");
    }
}

#[test]
fn the_seeds_are_what_the_parsers_are_made_for() {
    let read = |name: &str, reads: fn(&[u8]) -> bool| {
        let target = TARGETS.into_iter().find(|target| target.name == name).unwrap();
        assert!(seeds(target).iter().any(|seed| reads(seed)), "no seed of {name} is read");
    };
    read("order", |bytes| message::Order::parse(bytes).is_ok());
    read("reply", |bytes| message::Reply::parse(bytes).is_ok());
    read("life_sign", |bytes| serde_json::from_slice::<message::LifeSign>(bytes).is_ok());
    read("life_sign", |bytes| serde_json::from_slice::<message::NodeRecord>(bytes).is_ok());
    read("admission", |bytes| message::EnrolToken::parse(&String::from_utf8_lossy(bytes)).is_ok());
    read("admission", |bytes| serde_json::from_slice::<message::Knock>(bytes).is_ok());
    read("event_batch", |bytes| message::EventBatch::parse(bytes).is_ok());
    read("creds", |bytes| bus::claims::Creds::parse(std::str::from_utf8(bytes).unwrap()).is_ok());
    read("trust", |bytes| {
        serde_json::from_slice::<message::SealedDocument>(bytes)
            .is_ok_and(|sealed| message::Trust::open(&sealed, &sealed.seal.key).is_ok())
    });
    read("succession", |bytes| {
        serde_json::from_slice::<message::SealedTrust>(bytes).is_ok_and(|offered| {
            let fleet = offered.roots.first().map_or(&offered.sealed, |link| &link.sealed).seal.key.clone();
            !offered.roots.is_empty() && message::Lineage::new(fleet).open(&offered).is_ok()
        })
    });
    read("renewal", |bytes| message::Renewal::parse(bytes, &whose(bytes)).is_ok());
    read("renewal", |bytes| message::Taken::parse(bytes, &whose(bytes)).is_ok());
    read("policy", |bytes| message::Policy::parse(std::str::from_utf8(bytes).unwrap()).is_ok());
    read("policy", |bytes| message::Selector::parse(std::str::from_utf8(bytes).unwrap()).is_ok());
    let line = |bytes: &[u8], first: bool| {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        if first { bytes[..end].to_vec() } else { bytes[end + 1..].to_vec() }
    };
    assert!(seeds(TARGETS.into_iter().find(|target| target.name == "target").unwrap()).iter().all(|seed| {
        message::Expression::parse(std::str::from_utf8(&line(seed, true)).unwrap()).is_ok()
            && message::Facts::parse(&line(seed, false)).is_ok()
    }));
    read("job_record", |bytes| serde_json::from_slice::<message::JobRecord>(bytes).is_ok());
    read("job_record", |bytes| serde_json::from_slice::<message::OrderChunk>(bytes).is_ok());
}

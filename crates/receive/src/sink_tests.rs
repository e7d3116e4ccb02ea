use std::time::Duration;

use bytes::Bytes;
use message::event::EventHead;
use message::{Kind, MessageId, NodeName, ReceivedBatch, Token, WIRE_VERSION};

use super::*;

fn batch(from: &str, records: &str) -> ReceivedBatch {
    let head = EventHead {
        v: WIRE_VERSION,
        kind: Kind::Event,
        id: MessageId::from_bytes([9; 16]),
        from: NodeName::new(from).unwrap(),
        to: NodeName::new("central").unwrap(),
        method: Token::method("m").unwrap(),
        domain: Token::domain("d").unwrap(),
        created: Timestamp::from_ms(0),
        count: records.lines().count().try_into().unwrap(),
        journal: None,
        row: None,
    };
    ReceivedBatch { head, records: Bytes::copy_from_slice(records.as_bytes()) }
}

const RECORDS: &str = r#"{"at":"2026-11-22T23:59:59.999Z","record":{"message":"one \u00fc"}}
{"at":"2026-11-23T00:00:00.000Z","record":{"goes_on":true,"message":"half"}}
{"at":"2026-11-23T00:00:00.000Z","record":{"message":" whole"}}
{"at":"2026-11-23T00:00:00.000Z","record":{"message_base64":"/wA="}}
{"at":"2026-11-23T00:00:00.000Z","record":{"n":1}}
"#;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn sink(&self, path: &str) -> FileSink {
        FileSink { path: self.dir.path().join(path).display().to_string(), rotate: None, keep: 2, fsync: true }
    }

    fn place(&self) -> Place {
        Place::open(&self.dir.path().join("place")).unwrap()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(path)).unwrap()
    }
}

fn load(batches: Vec<ReceivedBatch>, sequence: u64) -> Load {
    Load { batches: batches.iter().map(|batch| Usable::of(batch).unwrap()).collect(), sequence }
}

/// Why a batch cannot be used.
fn poison(batch: &ReceivedBatch) -> Option<String> {
    Usable::of(batch).err()
}

#[test]
fn lines_come_out_as_they_went_in() {
    let world = World::new();
    let load = load(vec![batch("ship1", RECORDS), batch("ship2", RECORDS)], 5);
    let mut place = world.place();
    assert_eq!(deliver_to_files(&world.sink("{from}.log"), &load, Format::Raw, &mut place).unwrap(), 10);
    assert_eq!(world.read("ship1.log"), b"one \xc3\xbc\nhalf whole\n\xff\0\n{\"n\":1}\n");
    assert_eq!(world.read("ship1.log"), world.read("ship2.log"));
    deliver_to_files(&world.sink("{date}.json"), &load, Format::Json, &mut place).unwrap();
    assert_eq!(world.read("2026-11-22.json").split(|byte| *byte == b'\n').count(), 3);
    let line: Value =
        serde_json::from_slice(world.read("2026-11-23.json").split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(
        (&line["from"], &line["id"], &line["record"]["message"]),
        (&json!("ship1"), &json!(format!("{}-1", MessageId::from_bytes([9; 16]))), &json!("half"))
    );
    assert_eq!(place.sequence, 5);
}

#[test]
fn a_crash_between_writing_and_noting_leaves_nothing_twice() {
    let world = World::new();
    let (sink, first) = (world.sink("log"), load(vec![batch("ship1", RECORDS)], 1));
    deliver_to_files(&sink, &first, Format::Raw, &mut world.place()).unwrap();
    let before = world.read("log");
    // The second load is written, and the machine goes down before that is noted.
    let mut place = world.place();
    place.begin([(world.dir.path().join("log"), before.len() as u64)].into()).unwrap();
    let mut file = OpenOptions::new().append(true).open(world.dir.path().join("log")).unwrap();
    file.write_all(b"a second load, half of ").unwrap();
    drop(place);
    let mut place = world.place();
    let kind = SinkKind::File(sink.clone());
    Sink::new(&kind).unwrap().mend(&place).unwrap();
    assert_eq!((world.read("log"), place.sequence), (before.clone(), 1));
    deliver_to_files(&sink, &load(vec![batch("ship1", RECORDS)], 2), Format::Raw, &mut place).unwrap();
    assert_eq!(world.read("log"), [before.clone(), before].concat());
    // What was moved away meanwhile is left alone.
    world.place().begin([(world.dir.path().join("log"), 1_000_000)].into()).unwrap();
    Sink::new(&kind).unwrap().mend(&world.place()).unwrap();
    assert!(!world.read("log").is_empty());
}

#[test]
fn a_file_that_is_large_is_renamed_and_so_many_are_left() {
    let world = World::new();
    let sink = FileSink { rotate: Some(10), ..world.sink("log") };
    for sequence in 1..=4 {
        deliver_to_files(&sink, &load(vec![batch("ship1", RECORDS)], sequence), Format::Raw, &mut world.place())
            .unwrap();
    }
    assert!(!world.dir.path().join("log").exists() && !world.dir.path().join("log.3").exists());
    assert_eq!(world.read("log.1"), world.read("log.2"));
}

#[tokio::test]
async fn a_program_gets_every_line_and_is_started_again() {
    let world = World::new();
    let out = world.dir.path().join("out");
    // It ends after the first line that it reads.
    let argv = ["sh", "-c", &format!("head -n 1 >> {}", out.display())].map(str::to_owned).to_vec();
    let mut sink = Sink::new(&SinkKind::Command(argv)).unwrap();
    let mut place = world.place();
    let record =
        |text: &str| format!("{{\"at\":\"2026-11-23T00:00:00.000Z\",\"record\":{{\"message\":\"{text}\"}}}}\n");
    for (sequence, text) in (1..).zip(["one", "two"]) {
        let load = load(vec![batch("ship1", &record(text))], sequence);
        sink.deliver(&load, Format::Raw, &mut place).await.unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !std::fs::read_to_string(&out).unwrap_or_default().contains(text) {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Sink::Command { child: Some(child), .. } = &mut sink else { panic!() };
        child.wait().await.unwrap();
    }
    assert_eq!(place.sequence, 2);
    let mut none = Sink::new(&SinkKind::Command(vec!["/no/such/program".into()])).unwrap();
    let refused = none.deliver(&load(vec![batch("ship1", &record("three"))], 3), Format::Raw, &mut place).await;
    assert!(matches!(&refused, Err(Refusal::Later(reason)) if reason.contains("/no/such/program")), "{refused:?}");
    assert_eq!(place.sequence, 2, "it holds its place");
}

#[test]
fn loki_gets_streams_by_node() {
    let body = loki(streams(&load(vec![batch("ship1", RECORDS)], 1), Format::Raw));
    let values = &body["streams"][0]["values"];
    assert_eq!((values.as_array().unwrap().len(), &body["streams"][0]["stream"]["from"]), (5, &json!("ship1")));
    assert_eq!(values[0], json!(["1795391999999000000", "one ü"]));
}

#[test]
fn opentelemetry_gets_a_resource_for_each_node_and_domain() {
    let body = otlp(streams(&load(vec![batch("ship1", RECORDS), batch("ship2", RECORDS)], 1), Format::Raw));
    let resources = body["resourceLogs"].as_array().unwrap();
    assert_eq!(resources.len(), 2);
    assert_eq!(
        resources[1]["resource"]["attributes"][0],
        json!({"key": "host.name", "value": {"stringValue": "ship2"}})
    );
    let records = &resources[0]["scopeLogs"][0]["logRecords"];
    assert_eq!(records[0], json!({"timeUnixNano": "1795391999999000000", "body": {"stringValue": "one ü"}}));
}

#[test]
fn a_batch_that_is_not_what_it_says_is_used_for_nothing() {
    assert_eq!(poison(&batch("ship1", RECORDS)), None);
    let mut short = batch("ship1", RECORDS);
    short.head.count += 1;
    assert!(poison(&short).unwrap().contains("6 records and holds 5"));
    let good = r#"{"at":"2026-11-23T00:00:00.000Z","record":1}"#;
    for (line, why) in [
        (r#"{"at":"2026-11-23T00:00:00.000Z"}"#, "record 2 is none"),
        ("no JSON", "record 2 is none"),
        ("\0\0", "record 2 is none"),
        (r#"{"at":5,"record":1}"#, "record 2 is none"),
        (r#"{"at":"yesterday","record":1}"#, "time of its record 2"),
        (r#"{"at":"2026-13-23T00:00:00.000Z","record":1}"#, "time of its record 2"),
        (r#"{"at":"2026-11-23T00:00:00/../../x","record":1}"#, "time of its record 2"),
        (r#"{"at":"2026-11-23T00:00:00.000Z","record":{"message_base64":"?"}}"#, "not in base64"),
        (r#"{"at":"2026-11-23T00:00:00.000Z","record":{"message\u005fbase64":"?"}}"#, "not in base64"),
    ] {
        let told = poison(&batch("ship1", &format!("{good}\n{line}\n{good}\n")));
        assert!(told.as_ref().is_some_and(|told| told.contains(why)), "{line}: {told:?}");
    }
    // What is taken for a time because the second before was one, is one.
    for digits in 1..=9 {
        let at = format!("2026-11-23T00:00:00.{}Z", &"123456789"[..digits]);
        assert!(at.parse::<Timestamp>().is_ok(), "{at}");
        let line = format!(r#"{{"at":"{at}","record":1}}"#);
        assert_eq!(poison(&batch("ship1", &format!("{good}\n{line}\n"))), None);
    }
    // What is written with signs that JSON may write otherwise is a time all the same.
    let other = r#"{"at":"2026-11-23T00:00:00.000\u005a","record":1}"#;
    assert_eq!(poison(&batch("ship1", other)), None);
    let load = load(vec![batch("ship1", &format!("{good}\n{other}\n"))], 1);
    assert_eq!(load.batches[0].lines().map(|line| line.at).collect::<Vec<_>>(), ["2026-11-23T00:00:00.000Z"; 2]);
}

#[test]
fn a_message_is_written_as_json_reads_it_however_it_is_written() {
    for record in [
        r#"{"message":""}"#,
        r#"{"message":"plain"}"#,
        r#"{"message":"a \"quoted\" word \\ \/ \n \t \r"}"#,
        r#"{"message":"\\"}"#,
        r#"{"message":"\"}"}"#,
        r#"{"message":"\u00fc\b"}"#,
        r#"{"message":"a","n":1}"#,
        r#"{"message":"a","more":"b"}"#,
        r#"{"message": "spaced"}"#,
        r#"{"message":"a","goes_on":true}"#,
        r#"{"message":5}"#,
        r#"{"other":"a"}"#,
        "[]",
    ] {
        let value: Value = serde_json::from_str(record).unwrap();
        let mut wanted = match value.get("message").and_then(Value::as_str) {
            Some(text) => text.to_owned(),
            None => record.to_owned(),
        };
        if value.get("goes_on").is_none() {
            wanted.push('\n');
        }
        let load = load(vec![batch("ship1", &format!(r#"{{"at":"2026-11-23T00:00:00.000Z","record":{record}}}"#))], 1);
        assert_eq!(load.text(Format::Raw), (wanted.into_bytes(), 1), "{record}");
    }
}

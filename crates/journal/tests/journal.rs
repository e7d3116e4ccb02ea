//! The journal keeps what it confirmed, all of a write or nothing, across openings.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may end where it stands")]

use journal::{
    Entry, EventRow, Journal, JournalError, Lane, Newest, OutputRow, RETENTION_AFTER_EXPIRY, Tombstone, Write,
};
use message::{History, JobId, MessageId, NodeName, OrderId, State, Timestamp, Token};

fn entry(number: u8, states: &[State]) -> Entry {
    let mut history = History::new();
    for (index, state) in states.iter().enumerate() {
        history.push(*state, Timestamp::from_ms(index as i64)).unwrap();
    }
    Entry {
        id: OrderId::from_bytes([number; 16]),
        sequence: u64::from(number),
        job: JobId::new(1, u128::from(number)),
        from: NodeName::new("central").unwrap(),
        method: Token::method("shellcommand").unwrap(),
        domain: Token::domain("operatingsystem").unwrap(),
        expires: Timestamp::from_ms(1_000),
        supersede: None,
        history,
        reason: None,
        outcome: None,
        body: Some("{}".into()),
        reply_id: MessageId::from_bytes([number; 16]),
        by: None,
        approvals: vec![],
        reported: 0,
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, first) = Journal::open(dir.path()).unwrap();
    let running = entry(2, &[State::Delivered, State::Running]);
    let done = entry(1, &[State::Delivered, State::Running, State::Succeeded]);
    journal
        .commit(vec![
            Write::Entry(Box::new(running.clone())),
            Write::Entry(Box::new(done.clone())),
            Write::Head { subject: "ship1.command.a.b".into(), sequence: 7 },
            Write::Watermark(Timestamp::from_ms(99)),
        ])
        .await
        .unwrap();
    drop(journal);
    let (journal, opened) = reopen(dir.path()).await;
    assert_eq!(opened.instance, first.instance, "the instance id stays with the journal");
    assert_eq!(opened.unsettled, [done.clone(), running], "in the order of the stream");
    assert_eq!(opened.cursor.heads, [("ship1.command.a.b".to_owned(), 7)]);
    assert_eq!(opened.cursor.watermark, Timestamp::from_ms(99));
    assert_eq!(journal.find(&done.id).unwrap().unwrap().history.state(), State::Succeeded);
    assert_eq!(journal.find(&OrderId::from_bytes([9; 16])).unwrap(), None);
}

#[tokio::test]
async fn tombstones_and_newest_orders_are_kept_until_nothing_older_can_come() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let (job, key) = (JobId::new(1, 9), Token::key("nightly").unwrap());
    let until = Timestamp::from_ms(5_000);
    let tombstone = Tombstone { job: job.clone(), until, reason: "cancelled".into(), only_of: vec![] };
    let newest = Newest { key: key.clone(), sequence: 7, job: job.clone(), until };
    let waiting = entry(3, &[State::Delivered]);
    let writes = vec![
        Write::Tombstone(tombstone.clone()),
        Write::Newest(newest.clone()),
        Write::Entry(Box::new(waiting.clone())),
    ];
    journal.commit(writes).await.unwrap();
    assert_eq!(journal.find_job(&waiting.job).await.unwrap(), Some(waiting));
    assert_eq!(journal.find_job(&job).await.unwrap(), None, "only its tombstone is there");
    journal.prune(until.plus(RETENTION_AFTER_EXPIRY)).await.unwrap();
    assert_eq!(journal.tombstone(&job).unwrap(), Some(tombstone.clone()));
    assert_eq!(journal.newest(&key).unwrap(), Some(newest));
    journal.commit(vec![Write::Epoch("another store".into())]).await.unwrap();
    assert_eq!(journal.newest(&key).unwrap(), None, "sequences of another store mean nothing");
    assert_eq!(journal.tombstone(&job).unwrap(), Some(tombstone));
    journal.prune(until.plus(RETENTION_AFTER_EXPIRY).plus(std::time::Duration::from_millis(1))).await.unwrap();
    assert_eq!(journal.tombstone(&job).unwrap(), None);
}

/// The writer thread lets go of the file a moment after the last handle is dropped.
async fn reopen(dir: &std::path::Path) -> (Journal, journal::Opened) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        match Journal::open(dir) {
            Ok(opened) => return opened,
            Err(JournalError::InUse { .. }) if std::time::Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_second_agent_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_journal, _) = Journal::open(dir.path()).unwrap();
    let error = Journal::open(dir.path()).err().unwrap();
    assert!(matches!(error, JournalError::InUse { .. }));
    assert!(error.to_string().contains("another agent is using"));
}

#[tokio::test]
async fn an_order_is_unsettled_until_its_end_and_its_output_are_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let done = entry(1, &[State::Delivered, State::Running, State::Succeeded]);
    let row = OutputRow { order: done.id, number: 0, is_stderr: true, bytes: b"oops".to_vec() };
    journal.commit(vec![Write::Output(row.clone()), Write::Entry(Box::new(done.clone()))]).await.unwrap();
    assert_eq!(journal.output(&done.id).unwrap(), [row]);
    journal.commit(vec![Write::Reported { id: done.id, step: 3 }]).await.unwrap();
    assert_eq!(journal.unsettled().unwrap().len(), 1, "its output is still to be sent");
    journal.commit(vec![Write::OutputSent { id: done.id, number: 0 }]).await.unwrap();
    assert!(journal.unsettled().unwrap().is_empty());
    assert!(journal.find(&done.id).unwrap().is_some(), "its id is remembered");
}

#[tokio::test]
async fn ids_are_forgotten_only_when_they_cannot_be_replayed_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let mut settled = entry(1, &[State::Expired]);
    settled.reported = 1;
    let waiting = entry(2, &[State::Delivered]);
    journal
        .commit(vec![Write::Entry(Box::new(settled.clone())), Write::Entry(Box::new(waiting.clone()))])
        .await
        .unwrap();
    let month = Timestamp::from_ms(1_000).plus(journal::RETENTION_AFTER_EXPIRY);
    assert_eq!(journal.prune(month).await.unwrap(), 0);
    assert_eq!(journal.prune(Timestamp::from_ms(month.as_ms() + 1)).await.unwrap(), 1);
    assert!(journal.find(&settled.id).unwrap().is_none());
    assert!(journal.find(&waiting.id).unwrap().is_some());
}

#[tokio::test]
async fn a_new_epoch_resets_the_cursor_but_forgets_no_id() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let known = entry(1, &[State::Delivered]);
    journal.commit(vec![Write::Entry(Box::new(known.clone())), Write::Floor(50)]).await.unwrap();
    journal.commit(vec![Write::Epoch("another".into())]).await.unwrap();
    assert!(journal.find(&known.id).unwrap().is_some());
    drop(journal);
    let (_, opened) = reopen(dir.path()).await;
    assert_eq!(opened.cursor.floor, 0);
    assert_eq!(opened.cursor.epoch.as_deref(), Some("another"));
}

#[tokio::test]
async fn events_and_the_position_of_their_source_are_one_write_and_rows_never_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let position = "{\"offset\":3}".to_owned();
    let row = |row: u64, payload: &[u8]| EventRow {
        row,
        subject: "central.event.a.b".into(),
        id: MessageId::from_bytes([1; 16]),
        encoding: None,
        payload: payload.into(),
    };
    let write = |rows| Write::Events { source: "log".into(), position: Some(position.clone()), rows };
    journal.commit(vec![write(vec![row(1, b"one"), row(2, b"\n\xff")])]).await.unwrap();
    assert_eq!(journal.source("log").unwrap(), Some(position.clone()));
    let rows = journal.events(Lane::Normal, 0, 10).unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.row, row.payload.as_slice())).collect::<Vec<_>>(),
        [(1, &b"one"[..]), (2, b"\n\xff")]
    );
    for row in rows {
        journal.commit(vec![Write::EventSent { row: row.row }]).await.unwrap();
    }
    assert_eq!(journal.event_count(Lane::Normal).unwrap(), 0);
    drop(journal);
    let (journal, opened) = reopen(dir.path()).await;
    assert_eq!(opened.event_row, 2);
    journal.commit(vec![write(vec![row(3, b"three")])]).await.unwrap();
    assert_eq!(journal.events(Lane::Normal, 2, 10).unwrap()[0].row, 3);
}

#[tokio::test]
async fn each_lane_of_events_has_its_order_and_numbers_are_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path()).unwrap();
    let row = |lane: Lane, number: u64| EventRow {
        row: lane.row(number),
        subject: "central.event.a.b".into(),
        id: MessageId::from_bytes([1; 16]),
        encoding: None,
        payload: b"x".into(),
    };
    let rows = vec![row(Lane::Low, 1), row(Lane::Normal, 2), row(Lane::Urgent, 3), row(Lane::Low, 4)];
    journal.commit(vec![Write::Events { source: String::new(), position: None, rows }]).await.unwrap();
    let numbers = |lane: Lane, after: u64| -> Vec<u64> {
        journal.events(lane, after, 10).unwrap().iter().map(|row| journal::number_of(row.row)).collect()
    };
    assert_eq!(
        (numbers(Lane::Urgent, 0), numbers(Lane::Normal, 0), numbers(Lane::Low, 0)),
        (vec![3], vec![2], vec![1, 4])
    );
    assert_eq!((numbers(Lane::Low, Lane::Low.row(1)), numbers(Lane::Low, Lane::Low.row(4))), (vec![4], vec![]));
    journal.commit(vec![Write::EventSent { row: Lane::Low.row(4) }]).await.unwrap();
    assert_eq!(Lane::ALL.map(|lane| journal.event_count(lane).unwrap()), [1, 1, 1]);
    drop(journal);
    let (_, opened) = reopen(dir.path()).await;
    assert_eq!(opened.event_row, 4, "also of one that was sent");
}

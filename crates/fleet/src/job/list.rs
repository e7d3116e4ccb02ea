//! Which jobs there are, newest first, and which one a person means.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bus::kv::{JOBS, is_deletion};
use bus::{Message, Scan, Start, clock};
use message::method::CANCEL;
use message::{JobId, JobRecord};

use super::stored::open_record;
use super::view::Arrival;
use super::{Gather, JobSummary, JobView, REPLIES};
use crate::connection::Fleet;
use crate::error::FleetError;

/// How far back is looked for the newest jobs, step by step; then everything is read.
const WINDOWS: [Duration; 3] =
    [Duration::from_secs(3_600), Duration::from_secs(24 * 3_600), Duration::from_secs(7 * 24 * 3_600)];
/// The answers to so many jobs are read at once.
const JOBS_AT_ONCE: usize = 32;

impl Fleet {
    /// The `limit` newest jobs, newest first. Jobs that no operator signed are left out.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be read.
    pub async fn jobs(&self, limit: usize) -> Result<Vec<JobSummary>, FleetError> {
        let mut summaries = Vec::new();
        for part in self.newest(limit, |_| true).await?.chunks(JOBS_AT_ONCE) {
            let mut views = HashMap::new();
            for (record, message) in part {
                match self.open_job(message).await {
                    Ok(job) => drop(views.insert(record.job.to_string(), job.view(Gather::Ignore))),
                    Err(error) => tracing::warn!(%error, "a job is left out"),
                }
            }
            let silencing = self.silencing(views.values().flat_map(JobView::addressees)).await?;
            for view in views.values_mut() {
                view.silence(&silencing);
            }
            self.fold_replies(&mut views).await?;
            for view in views.values_mut() {
                view.conclude();
            }
            let listed = part.iter().filter_map(|(record, _)| views.get(record.job.as_str()));
            summaries.extend(listed.map(summary));
        }
        Ok(summaries)
    }

    /// The job that `text` means: `last` (the newest that this operator ordered), a whole id, or the beginning of
    /// one that no other job begins with.
    ///
    /// # Errors
    /// [`FleetError::NoJob`] when it means none, [`FleetError::Usage`] when several.
    pub async fn find_job(&self, text: &str) -> Result<JobId, FleetError> {
        let none = |message: String| FleetError::NoJob { message };
        if text == "last" {
            let me = self.operator();
            // Whoever has just cancelled a job still means that job.
            let mine =
                |record: &JobRecord| record.method.as_str() != CANCEL && me.as_ref().is_none_or(|me| record.by == *me);
            let newest = self.newest(1, mine).await?;
            return match newest.into_iter().next() {
                Some((record, _)) => Ok(record.job),
                None => Err(none("there is no job yet; `steward run` makes one".into())),
            };
        }
        let prefix = text.to_ascii_uppercase();
        if let Ok(job) = JobId::parse(prefix.clone()) {
            return match self.bus().kv_get(JOBS, job.as_str()).await? {
                Some(_) => Ok(job),
                None => Err(none(format!("there is no job {job}; `steward job ls` lists the newest ones"))),
            };
        }
        if prefix.is_empty() || !prefix.chars().all(|c| c.is_ascii_alphanumeric()) {
            let message = format!("{text:?} is no job: give an id, the beginning of one, or `last`");
            return Err(FleetError::usage(message));
        }
        let found = self.newest(usize::MAX, |record| record.job.as_str().starts_with(&prefix)).await?;
        match found.as_slice() {
            [] => Err(none(format!("no job's id begins with {prefix}; `steward job ls` lists the newest ones"))),
            [(record, _)] => Ok(record.job.clone()),
            several => {
                let ids: Vec<&str> = several.iter().take(5).map(|(record, _)| record.job.as_str()).collect();
                let message =
                    format!("{} jobs begin with {prefix}: {}; give more of the id", several.len(), ids.join(", "));
                Err(FleetError::usage(message))
            }
        }
    }

    /// The `limit` newest jobs that are `wanted`, newest first, by their signed records.
    async fn newest(
        &self,
        limit: usize,
        wanted: impl Fn(&JobRecord) -> bool,
    ) -> Result<Vec<(JobRecord, Message)>, FleetError> {
        let trust = self.trust();
        let now = clock::now();
        let ago = |window: Duration| {
            let ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
            Start::Time(message::Timestamp::from_ms(now.as_ms().saturating_sub(ms)))
        };
        // A wrong clock only makes the first windows too small or too large: what is newest is never missed.
        let windows = if limit == usize::MAX { &[][..] } else { &WINDOWS[..] };
        for start in windows.iter().copied().map(ago).chain([Start::First]) {
            let mut scan = Scan::open(self.bus(), &format!("KV_{JOBS}"), &[format!("$KV.{JOBS}.*")], start).await?;
            let mut found = BTreeMap::new();
            while let Some(message) = scan.next().await? {
                if is_deletion(&message) {
                    continue;
                }
                match open_record(&message, &trust) {
                    // Not by id: one that follows from an idempotency key says nothing of its age.
                    Ok((record, _)) if wanted(&record) => {
                        drop(found.insert((record.created, record.job.clone()), (record, message)));
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "a job is left out"),
                }
                // Of what is read in the order of storing, only the newest matter.
                if found.len() > limit {
                    found.pop_first();
                }
            }
            if found.len() >= limit || start == Start::First {
                return Ok(found.into_values().rev().collect());
            }
        }
        Ok(Vec::new())
    }

    async fn fold_replies(&self, views: &mut HashMap<String, JobView>) -> Result<(), FleetError> {
        if views.is_empty() {
            return Ok(());
        }
        let filters: Vec<String> = views.keys().map(|job| format!("*.reply.{job}.*")).collect();
        let mut scan = Scan::open(self.bus(), REPLIES, &filters, Start::First).await?;
        while let Some(message) = scan.next().await? {
            let job = message.subject.split('.').nth(2).unwrap_or_default();
            if let Some(view) = views.get_mut(job) {
                view.apply(&Arrival::from(&message));
            }
        }
        Ok(())
    }
}

fn summary(view: &JobView) -> JobSummary {
    let record = &view.record;
    JobSummary {
        job: record.job.clone(),
        created_at: record.created,
        by: record.by.clone(),
        method: record.method.clone(),
        domain: record.domain.clone(),
        targets: record.targets,
        counts: view.counts(),
        retry_of: record.retry_of.clone(),
    }
}

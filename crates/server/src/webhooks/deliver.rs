//! Which webhook is tried when: a few at once, and whenever one is done the next takes its place, so that a receiver that answers
//! late holds up nobody but itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Courier;
use super::send::host_of;
use crate::board::Board;
use crate::clock::UnixMs;
use crate::id::VideoId;
use crate::job::Job;
use crate::journal::note;
use crate::metrics::Metrics;
use crate::store::{Attempt, JobStore, StoreError};

/// Deliveries under way at once.
const AT_ONCE: usize = 8;
/// How many of them may go to one host: one that answers late leaves places to the others.
const AT_ONCE_TO_A_HOST: usize = 4;
/// How many that are due are read at once, in search of some whose host has a place.
const PAGE: u32 = 64;
/// How many times that, at most, before somebody else gets a turn; what is behind them is looked at next.
const PAGES_MAX: usize = 16;
/// How long until then.
const NEXT_LOOK: Duration = Duration::from_millis(500);
/// How long to wait when nothing is due and nobody says that a job has ended.
const IDLE: Duration = Duration::from_secs(60);
/// How long to wait before the store is asked again after it failed.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// Delivers what is due until the task is ended.
pub(crate) async fn deliver(
    courier: Courier,
    store: Arc<dyn JobStore>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
) {
    let mut taken = Taken::default();
    let mut under_way = FuturesUnordered::new();
    loop {
        let written = taken.write(&*store).await;
        let found = taken.find(&*store).await;
        let started = found.map(|(jobs, pause)| {
            for job in jobs {
                under_way.push(try_once(&courier, &*store, &metrics, job));
            }
            pause
        });
        let pause = written.and(started).unwrap_or_else(|error| {
            note("webhooks", format_args!("the store failed, will be tried again: {error}"));
            STORE_PAUSE
        });
        tokio::select! {
            Some((id, unwritten)) = under_way.next() => taken.end(id, unwritten),
            () = tokio::time::sleep(pause) => {}
            () = board.until_a_job_ends() => {}
        }
    }
}

/// Jobs whose webhook is due in the store and not to be tried now.
#[derive(Debug, Default)]
struct Taken {
    /// Those that are being tried, and their hosts.
    under_way: BTreeMap<VideoId, String>,
    /// What came of attempts that the store could not take. Their jobs are not tried again before it has them, so there is one for
    /// each such job at most.
    unwritten: BTreeMap<VideoId, Attempt>,
    /// Behind which job to go on looking, where not all that is due was looked at.
    after: Option<(UnixMs, i64)>,
}

impl Taken {
    /// Writes what is unwritten, as much as the store takes.
    async fn write(&mut self, store: &dyn JobStore) -> Result<(), StoreError> {
        while let Some((id, attempt)) = self.unwritten.first_key_value() {
            store.note_webhook(id, attempt).await?;
            drop(self.unwritten.pop_first());
        }
        Ok(())
    }

    /// Takes what is due, as much as there are places for; says how long nothing more will be.
    async fn find(&mut self, store: &dyn JobStore) -> Result<(Vec<Job>, Duration), StoreError> {
        let n_free = AT_ONCE.saturating_sub(self.under_way.len());
        if n_free == 0 {
            // When something has ended, it is looked again.
            return Ok((Vec::new(), IDLE));
        }
        // Those that are taken, or whose host has no place, are due as well, and hide no others.
        let (now, mut chosen) = (UnixMs::now(), Vec::new());
        let mut after = self.after.take();
        let is_all = after.is_none();
        for _ in 0..PAGES_MAX {
            let due = store.webhooks_due(now.after(IDLE), after, PAGE).await?;
            let is_last = due.len() < PAGE as usize;
            let later = due.iter().filter_map(|job| job.webhook.as_ref()?.due).find(|due| *due > now);
            after = due.last().and_then(|job| Some((job.webhook.as_ref()?.due?, job.seq)));
            self.choose(due, now, &mut chosen);
            if chosen.len() == n_free || is_last || later.is_some() {
                let pause = later.map_or(IDLE, |at| Duration::from_millis(at.ms_since(now).unsigned_abs()));
                let pause = if is_all { pause.min(IDLE) } else { NEXT_LOOK };
                return Ok((self.take(chosen), pause));
            }
        }
        self.after = after;
        Ok((self.take(chosen), NEXT_LOOK))
    }

    /// Adds those that can be tried now, with their hosts.
    fn choose(&self, due: Vec<Job>, now: UnixMs, chosen: &mut Vec<(Job, String)>) {
        let mut to_host = BTreeMap::<String, usize>::new();
        for host in self.under_way.values().chain(chosen.iter().map(|(_, host)| host)) {
            *to_host.entry(host.clone()).or_default() += 1;
        }
        for job in due {
            let is_taken = self.under_way.contains_key(&job.id) || self.unwritten.contains_key(&job.id);
            let webhook = job.webhook.as_ref().filter(|webhook| webhook.due.is_some_and(|due| due <= now));
            let Some(webhook) = webhook.filter(|_| !is_taken) else { continue };
            if self.under_way.len() + chosen.len() == AT_ONCE {
                break;
            }
            let host = host_of(&webhook.url);
            let n_to_host = to_host.entry(host.clone()).or_default();
            if *n_to_host < AT_ONCE_TO_A_HOST {
                *n_to_host += 1;
                chosen.push((job, host));
            }
        }
    }

    fn take(&mut self, chosen: Vec<(Job, String)>) -> Vec<Job> {
        let take = |(job, host): (Job, String)| {
            self.under_way.insert(job.id.clone(), host);
            job
        };
        chosen.into_iter().map(take).collect()
    }

    /// An attempt is over; `unwritten` is what came of it, if the store could not take it.
    fn end(&mut self, id: VideoId, unwritten: Option<Attempt>) {
        self.under_way.remove(&id);
        if let Some(attempt) = unwritten {
            self.unwritten.insert(id, attempt);
        }
    }
}

/// Tries once and writes what came of it; gives that back when the store cannot take it. Why is told when it is written again, which
/// is at once.
async fn try_once(
    courier: &Courier,
    store: &dyn JobStore,
    metrics: &Metrics,
    job: Job,
) -> (VideoId, Option<Attempt>) {
    let Some(attempt) = courier.attempt(&job).await else { return (job.id, None) };
    let outcome = match (attempt.delivered, attempt.due) {
        (Some(_), _) => "delivered",
        (None, Some(_)) => "will_be_tried_again",
        (None, None) => "given_up",
    };
    metrics.webhook(outcome);
    note(&job.id, format_args!("webhook {outcome}: {}", attempt.said));
    let is_refused = store.note_webhook(&job.id, &attempt).await.is_err();
    (job.id, is_refused.then_some(attempt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::waiting;
    use crate::job::Webhook;

    fn due(host: &str) -> Job {
        Job { webhook: Some(Webhook::new(format!("http://{host}/x"), "evt_1".to_owned())), ..waiting() }
    }

    #[test]
    fn one_host_gets_half_of_the_places_and_nothing_is_tried_twice_at_once() {
        let slow = (0..20).map(|_| due("slow.example"));
        let jobs: Vec<Job> = slow.chain([due("A.example"), due("b.example:81")]).collect();
        let mut taken = Taken::default();
        let choose_of = |taken: &Taken, jobs: Vec<Job>, now: i64| {
            let mut chosen = Vec::new();
            // In pages, as the store gives them.
            jobs.chunks(3).for_each(|page| taken.choose(page.to_vec(), UnixMs(now), &mut chosen));
            chosen
        };
        let choose = |taken: &Taken| choose_of(taken, jobs.clone(), 0);
        let chosen = choose(&taken);
        let hosts: Vec<_> = chosen.iter().map(|(_, host)| host.as_str()).collect();
        assert_eq!(hosts, [vec!["slow.example"; 4], vec!["a.example", "b.example"]].concat());
        let started = taken.take(chosen);
        assert!(choose(&taken).is_empty(), "the slow one has its places, the others are under way");
        // One whose end the store could not take leaves its place to the next.
        let attempt = Attempt { said: "answered 200".to_owned(), delivered: Some(UnixMs(1)), due: None };
        taken.end(started[0].id.clone(), Some(attempt));
        let next = choose(&taken);
        assert_eq!((next.len(), &next[0].0.id), (1, &jobs[4].id));
        let many: Vec<Job> = (0..20).map(|n| due(&format!("{n}.example"))).collect();
        assert_eq!(choose_of(&taken, many, 0).len(), AT_ONCE - 5);
        let later = Job {
            webhook: Some(Webhook { due: Some(UnixMs(5)), ..jobs[4].webhook.clone().unwrap() }),
            ..waiting()
        };
        assert!(choose_of(&taken, vec![later], 4).is_empty(), "it is not due yet");
    }
}

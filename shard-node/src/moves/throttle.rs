//! How long a driver rests after each page, so that a copy does not take the source from its clients. No I/O.
//!
//! The measure is the source's commit latency, which is what clients wait for. The driver compares the mean commit time during a page with
//! the lowest mean since the driver started. The rest shrinks while commits are fast and grows while they are slow. If the source
//! commits nothing, the rest halves.

use std::time::Duration;

/// The rest is a multiple of the time that the page took, within these bounds.
const LEAST: f64 = 0.5;
const MOST: f64 = 4.0;
const FIRST: f64 = 2.0;
/// A latency is too high from this multiple of the lowest one on.
const TOO_HIGH: f64 = 1.5;
/// What the rest is multiplied by after a page during which nothing was committed.
const WHEN_IDLE: f64 = 0.5;
/// A commit that takes less is not slow, whatever the lowest one was.
const NEVER_SLOW: Duration = Duration::from_millis(2);

/// A page takes about so long. A longer one keeps a small machine from its clients, and a shorter one wastes calls.
const PAGE_TAKES: Duration = Duration::from_millis(50);
const SMALLEST_PAGE: u32 = 1_000;
const FIRST_PAGE: u32 = 2_500;
/// With metadata of full length, so many rows still fit into one message.
const LARGEST_PAGE: u32 = 10_000;

/// How many bookings a page looks at. Of some slots, a page has few rows and is read in no time.
#[derive(Debug, Clone, Copy)]
pub struct PageSize(u32);

impl Default for PageSize {
    fn default() -> Self {
        Self(FIRST_PAGE)
    }
}

impl PageSize {
    pub fn size(self) -> u32 {
        self.0
    }

    /// A page of this size may have been too large for a message.
    pub fn failed(&mut self) {
        self.0 = (self.0 / 2).max(SMALLEST_PAGE);
    }

    /// Takes in how long a page of this size took.
    pub fn took(&mut self, page: Duration) {
        if page < PAGE_TAKES / 2 {
            self.0 = (self.0 * 2).min(LARGEST_PAGE);
        } else if page > PAGE_TAKES * 2 {
            self.0 = (self.0 / 2).max(SMALLEST_PAGE);
        }
    }
}

/// Whether a catch-up has to go without rests. A throttled one may be slower than the source appends, and would never end.
#[derive(Debug, Clone, Copy, Default)]
pub struct CatchUp {
    entries_left: Option<i64>,
    hurries: bool,
}

impl CatchUp {
    /// Takes in a page of the catch-up, and how many entries of the source were left after it.
    pub fn page(&mut self, entries_left: i64, at_end: bool) {
        let before = self.entries_left.replace(entries_left);
        self.hurries = !at_end && (self.hurries || before.is_some_and(|before| entries_left >= before));
        if at_end {
            self.entries_left = None;
        }
    }

    /// Pages follow each other without rests, until one reaches the end.
    pub fn hurries(self) -> bool {
        self.hurries
    }
}

#[derive(Debug)]
pub struct Throttle {
    page: PageSize,
    factor: f64,
    lowest: Option<Duration>,
    /// The mean commit time of the last page, if the source has committed anything.
    mean: Option<Duration>,
    /// Commits so far, and how long they took together.
    heard: Option<(u64, Duration)>,
}

impl Default for Throttle {
    fn default() -> Self {
        Self { page: PageSize::default(), factor: FIRST, lowest: None, mean: None, heard: None }
    }
}

impl Throttle {
    /// Takes in how much the source has committed since its node started, and how long that took.
    pub fn hear(&mut self, commits: u64, total: Duration) {
        let before = self.heard.replace((commits, total));
        // After a restart of the node the numbers begin anew.
        let Some((count, took)) = before.filter(|(count, took)| *count <= commits && *took <= total) else { return };
        let Some(mean) = u32::try_from(commits - count).ok().and_then(|count| (total - took).checked_div(count))
        else {
            self.mean = None;
            self.factor = (self.factor * WHEN_IDLE).max(LEAST);
            return;
        };
        self.mean = Some(mean);
        let lowest = self.lowest.map_or(mean, |lowest| lowest.min(mean));
        self.lowest = Some(lowest);
        let is_slow = mean > lowest.mul_f64(TOO_HIGH) && mean > NEVER_SLOW;
        self.factor = (self.factor * if is_slow { 1.5 } else { 0.9 }).clamp(LEAST, MOST);
    }

    /// Bookings in the next page.
    pub fn page(&self) -> u32 {
        self.page.size()
    }

    pub fn page_failed(&mut self) {
        self.page.failed();
    }

    pub fn page_took(&mut self, page: Duration) {
        self.page.took(page);
    }

    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Why the driver rests, for an operator.
    pub fn reason(&self, rate: u64) -> String {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let mut reason = format!("after each page, the copy rests {:.1} times as long as the page took", self.factor);
        if let (Some(mean), Some(lowest)) = (self.mean, self.lowest) {
            let times = format!(
                "; the source's mean commit takes {:.1} ms now and took {:.1} ms at best",
                milliseconds(mean),
                milliseconds(lowest)
            );
            reason.push_str(&times);
        }
        if rate > 0 {
            reason.push_str(&format!("; at most {rate} bytes a second"));
        }
        reason
    }

    /// The rest after a page of so many bytes that took so long, with a limit of bytes a second (0: none).
    pub fn rest(&self, page: Duration, bytes: usize, rate: u64) -> Duration {
        let by_latency = page.mul_f64(self.factor);
        if rate == 0 {
            return by_latency;
        }
        #[allow(clippy::cast_precision_loss, reason = "a pause need not be exact")]
        let by_rate = Duration::from_secs_f64(bytes as f64 / rate as f64).saturating_sub(page);
        by_latency.max(by_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Tells of pages with so many commits each that took so long.
    fn pages(throttle: &mut Throttle, commits: u32, each: Duration) {
        for _ in 0..50 {
            let (count, total) = throttle.heard.unwrap_or_default();
            throttle.hear(count + u64::from(commits), total + each * commits);
        }
    }

    #[test]
    fn slow_commits_make_the_rest_longer_and_fast_ones_shorter() {
        let is = |throttle: &Throttle, factor: f64| (throttle.factor() - factor).abs() < 1e-9;
        let mut throttle = Throttle::default();
        pages(&mut throttle, 10, MS * 4);
        assert!(is(&throttle, LEAST));
        pages(&mut throttle, 10, MS * 9);
        assert!(is(&throttle, MOST));
        pages(&mut throttle, 10, MS * 4);
        assert!(is(&throttle, LEAST));
        // A source that commits nothing has no clients to protect, however slow its last commits were.
        pages(&mut throttle, 10, MS * 9);
        pages(&mut throttle, 0, MS);
        assert!(is(&throttle, LEAST));
        // A millisecond is no slow commit. A node that was started again counts anew.
        let mut throttle = Throttle::default();
        pages(&mut throttle, 10, MS / 4);
        throttle.hear(1, MS);
        pages(&mut throttle, 10, MS);
        assert!(is(&throttle, LEAST));
    }

    #[test]
    fn pages_grow_while_they_are_quick_and_shrink_while_they_are_slow() {
        let mut page = PageSize::default();
        let mut after = |took: Duration| {
            for _ in 0..10 {
                page.took(took);
            }
            page.size()
        };
        assert_eq!([after(MS * 5), after(MS * 50), after(MS * 300)], [LARGEST_PAGE, LARGEST_PAGE, SMALLEST_PAGE]);
    }

    /// Found by growing a cluster under load: the slots of a hot account moved, and the throttled catch-up fell behind more and more.
    #[test]
    fn a_catch_up_that_falls_behind_goes_without_rests_until_it_is_at_the_end() {
        let mut catch_up = CatchUp::default();
        let mut after = |entries_left, at_end| {
            catch_up.page(entries_left, at_end);
            catch_up.hurries()
        };
        assert_eq!([after(900, false), after(800, false), after(810, false)], [false, false, true]);
        assert_eq!([after(500, false), after(0, true), after(300, false)], [true, false, false]);
    }

    #[test]
    fn a_rate_bounds_the_bytes() {
        let throttle = Throttle::default();
        assert_eq!(throttle.rest(MS * 10, 1_000_000, 0), MS * 20);
        assert_eq!(throttle.rest(MS * 10, 1_000_000, 1_000_000), MS * 990);
    }
}

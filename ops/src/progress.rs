//! Progress bars, on a terminal only: indicatif draws to standard error and stays silent where that is a file or a pipe.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(200);
const COUNTED: &str = "{msg:<12} {bar:40} {human_pos}/{human_len} {per_sec:.dim} {eta:.dim}";
const PERCENT: &str = "{spinner} {prefix:<10} {bar:30} {pos:>3} % {msg}";
const STEPS: &str = "{spinner} {prefix:<10} {pos}/{len} {msg}";

/// Runs work of known size under a bar of its own, which goes when the work is done.
pub async fn counted<T>(what: &'static str, total: usize, work: impl AsyncFnOnce(&ProgressBar) -> T) -> T {
    let bar = ProgressBar::new(total as u64).with_style(style(COUNTED)).with_message(what);
    let done = work(&bar).await;
    bar.finish_and_clear();
    done
}

/// Bars below each other, one for each of several things done at once.
pub struct Stack(MultiProgress);

impl Stack {
    pub fn new() -> Self {
        Self(MultiProgress::new())
    }

    /// A bar from 0 to 100 for `who`; the message says more.
    pub fn percent(&self, who: &str) -> ProgressBar {
        let bar = ProgressBar::new(100).with_style(style(PERCENT)).with_prefix(who.to_owned());
        let bar = self.0.add(bar);
        bar.enable_steady_tick(TICK);
        bar
    }

    /// A line for `who`, who goes through `steps` steps; each is announced with [`ProgressBar::set_message`].
    pub fn steps(&self, who: &str, steps: usize) -> ProgressBar {
        let bar = ProgressBar::new(steps as u64).with_style(style(STEPS)).with_prefix(who.to_owned());
        let bar = self.0.add(bar);
        bar.enable_steady_tick(TICK);
        bar
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        for template in [COUNTED, STEPS, PERCENT] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}

//! Pauses shorter than the millisecond in which tokio's timers count.

#[cfg(all(target_os = "linux", not(test)))]
pub use linux::ShortTimer;

/// Tokio's timer, for systems without `timerfd` and for tests that set the clock.
#[cfg(any(not(target_os = "linux"), test))]
#[derive(Debug)]
pub struct ShortTimer;

#[cfg(any(not(target_os = "linux"), test))]
impl ShortTimer {
    pub fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub async fn sleep(&self, pause: std::time::Duration) {
        tokio::time::sleep(pause).await;
    }
}

#[cfg(all(target_os = "linux", not(test)))]
mod linux {
    use std::{io, os::fd::OwnedFd, time::Duration};

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::{Interest, unix::AsyncFd};

    const ZERO: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

    /// A timer of the kernel that counts in nanoseconds.
    #[derive(Debug)]
    pub enum ShortTimer {
        Kernel(AsyncFd<OwnedFd>),
        /// Tokio's, whose time a simulation has paused.
        #[cfg(feature = "simulation")]
        Simulated,
    }

    impl ShortTimer {
        /// # Errors
        /// When the process may open no further file.
        pub fn new() -> io::Result<Self> {
            #[cfg(feature = "simulation")]
            if telemetry::simulation::is_running() {
                return Ok(Self::Simulated);
            }
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            #[allow(deprecated, reason = "what replaces it is unsafe, and the descriptor is owned")]
            let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
            Ok(Self::Kernel(timer))
        }

        /// Waits. A pause that the kernel refuses is none. Dropping the future is harmless: the next pause replaces this one.
        pub async fn sleep(&self, pause: Duration) {
            match self {
                Self::Kernel(timer) => sleep(timer, pause).await,
                #[cfg(feature = "simulation")]
                Self::Simulated => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn sleep(timer: &AsyncFd<OwnedFd>, pause: Duration) {
        let Ok(it_value) = Timespec::try_from(pause) else { return };
        let once = Itimerspec { it_interval: ZERO, it_value };
        if timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once).is_err() {
            return;
        }
        let expirations = |timer: &OwnedFd| {
            let mut count = [0; 8];
            rustix::io::read(timer, &mut count).map_err(io::Error::from)
        };
        let _ = timer.async_io(Interest::READABLE, expirations).await;
    }
}

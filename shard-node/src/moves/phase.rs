//! The phases of a move, as both shards store them. No I/O.

/// Which part a shard takes in a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Gives the slots away.
    Source = 1,
    /// Receives the slots, and drives the move.
    Target = 2,
}

/// What a shard has done for a move. The numbers are stored: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Target: bookings up to the source's folded position, and rows of accounts, are being copied.
    Copying = 1,
    /// Target: what the source appends is followed.
    CatchingUp = 2,
    /// Target: the slots are owned here. The move can be reversed or finished.
    Taken = 3,
    /// Target: the source has cleaned up.
    Finished = 4,
    /// Target: what was copied is being deleted.
    Aborting = 5,
    /// Target: the copy is deleted. A reversal keeps it for the next one.
    Aborted = 6,
    /// Target: the slots went back.
    Reversed = 7,
    /// Source: the slots are owned here, and are being read.
    Joined = 11,
    /// Source: the slots are given away. Their data is still here.
    Released = 12,
    /// Source: the data of the slots is deleted.
    CleanedUp = 13,
    /// Source: the move was given up before the slots were released.
    Left = 14,
    /// Source: the slots came back.
    GotBack = 15,
}

impl Phase {
    pub const ALL: [Self; 12] = [
        Self::Copying,
        Self::CatchingUp,
        Self::Taken,
        Self::Finished,
        Self::Aborting,
        Self::Aborted,
        Self::Reversed,
        Self::Joined,
        Self::Released,
        Self::CleanedUp,
        Self::Left,
        Self::GotBack,
    ];

    pub fn code(self) -> i16 {
        self as i16
    }

    pub fn from_code(code: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.code() == code)
    }

    pub fn role(self) -> Role {
        if self.code() < Self::Joined.code() { Role::Target } else { Role::Source }
    }

    /// Whether the move may still change at this shard.
    pub fn is_open(self) -> bool {
        match self {
            Self::Copying | Self::CatchingUp | Self::Taken | Self::Aborting | Self::Joined | Self::Released => true,
            Self::Finished | Self::Aborted | Self::Reversed | Self::CleanedUp | Self::Left | Self::GotBack => false,
        }
    }

    /// Whether the slots have not changed hands yet.
    pub fn is_before_cut_over(self) -> bool {
        matches!(self, Self::Copying | Self::CatchingUp | Self::Aborting | Self::Joined)
    }

    /// Whether this shard may take the step to `next`.
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Copying, Self::CatchingUp | Self::Aborting)
                | (Self::CatchingUp, Self::Taken | Self::Aborting)
                | (Self::Taken, Self::Finished | Self::Reversed)
                | (Self::Aborting, Self::Aborted)
                | (Self::Joined, Self::Released | Self::Left)
                | (Self::Released, Self::CleanedUp | Self::GotBack)
        )
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::CatchingUp => "catching up",
            Self::Taken => "taken",
            Self::Finished => "finished",
            Self::Aborting => "aborting",
            Self::Aborted => "aborted",
            Self::Reversed => "reversed",
            Self::Joined => "joined",
            Self::Released => "released",
            Self::CleanedUp => "cleaned up",
            Self::Left => "left",
            Self::GotBack => "got back",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_that_is_not_open_is_the_last() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_code(phase.code()), Some(phase));
            let next = Phase::ALL.into_iter().filter(|next| phase.may_become(*next)).collect::<Vec<_>>();
            assert_eq!(next.is_empty(), !phase.is_open(), "{phase:?}: {next:?}");
            assert!(next.iter().all(|next| next.role() == phase.role()), "{phase:?}: {next:?}");
        }
    }

    #[test]
    fn what_is_released_is_never_given_up() {
        assert!(!Phase::Released.may_become(Phase::Left));
        assert!(!Phase::Taken.may_become(Phase::Aborting));
    }
}

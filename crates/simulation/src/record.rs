//! What clients ordered and what they were told.

use ledger::{
    HoldKey, Refused, TransferId,
    operation::PlaceHold,
    outcome::{HoldAnswer, TransferAnswer, TransferState},
};
use router::simulation::{AtomicReply, CallError, HoldReply, NewTransfer, ReleaseReply, TransferReply};

/// How people read an id: the client and its number.
pub fn short(id: TransferId) -> String {
    let (client, number) = id.0.as_u64_pair();
    format!("{}/{number}", client.saturating_sub(1))
}

/// What an attempt proves about an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// The answer for good.
    Answered,
    /// Nothing is stored, and the answer may be another one next time.
    NothingStored,
    /// This attempt has no effect and never will.
    NotExecuted,
    /// It may take effect.
    Unknown,
}

/// What a client asked for.
#[derive(Debug, Clone)]
pub enum Order {
    Transfer(NewTransfer),
    Hold(PlaceHold),
    Release(HoldKey),
}

/// The first answer to an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Transfer(TransferAnswer),
    Hold(HoldAnswer),
    Released,
    /// The hold had ended otherwise.
    NotReleased(Refused),
}

/// An order, and what is known of it.
#[derive(Debug, Clone)]
pub struct Record {
    pub order: Order,
    pub answer: Option<Answer>,
    /// An attempt may have taken effect whose answer the client does not have.
    pub is_doubtful: bool,
    /// The last attempt was not executed, or stored nothing, and the client left it at that.
    pub is_abandoned: bool,
    /// The order was part of an atomic group.
    pub is_of_group: bool,
    pub attempts: u32,
    /// When the first attempt was sent that may have had an effect, and when the last one was.
    pub sent: Option<Moment>,
    pub last_sent: Option<Moment>,
    /// When the first answer came.
    pub returned: Option<Moment>,
    /// When each attempt was sent that a router read, and its deadline.
    pub limits: Vec<(Moment, Moment)>,
}

/// An atomic group whose order has ended.
#[derive(Debug, Clone)]
pub struct Group {
    pub members: Vec<Record>,
    /// The member for which nothing of the group is stored, the reason, and when the client was told so.
    pub failed: Option<Failure>,
}

/// Why a group stored nothing.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub culprit: usize,
    pub refused: Refused,
    pub returned: Moment,
}

/// A moment of a run. Microseconds since its beginning; of two events in the same microsecond, the later one has the greater number.
pub type Moment = u64;

impl Record {
    pub fn new(order: Order) -> Self {
        Self {
            order,
            answer: None,
            is_doubtful: false,
            is_abandoned: false,
            is_of_group: false,
            attempts: 0,
            sent: None,
            last_sent: None,
            returned: None,
            limits: Vec::new(),
        }
    }

    /// Takes note of an attempt that begins.
    pub fn sends(&mut self, now: Moment) {
        self.attempts += 1;
        self.last_sent = Some(now);
        // What was certainly not executed did not begin.
        if !self.is_doubtful && self.answer.is_none() {
            self.sent = Some(now);
        }
    }

    /// Takes note of the end of an attempt.
    pub fn hears(&mut self, now: Moment) {
        if self.answer.is_some() {
            self.returned.get_or_insert(now);
        }
    }

    pub fn id(&self) -> TransferId {
        match &self.order {
            Order::Transfer(transfer) => transfer.id,
            Order::Hold(place) => place.id,
            Order::Release(key) => key.id,
        }
    }

    /// The number of the client.
    pub fn client(&self) -> usize {
        usize::try_from(self.id().0.as_u64_pair().0.saturating_sub(1)).unwrap_or(0)
    }

    /// The amount that was posted, if the order is a transfer that was posted.
    pub fn posted(&self) -> Option<(&NewTransfer, i64)> {
        match (&self.order, &self.answer) {
            (Order::Transfer(order), Some(Answer::Transfer(answer))) => {
                matches!(answer.state, TransferState::Posted { .. }).then_some((order, answer.amount))
            }
            _ => None,
        }
    }

    /// Takes note of an answer.
    ///
    /// # Errors
    /// If the answer contradicts an earlier one.
    fn answered(&mut self, answer: Answer) -> Result<Proof, String> {
        match &self.answer {
            None => self.answer = Some(answer),
            Some(first) if *first == answer => {}
            Some(first) => {
                return Err(format!("the order was answered {first:?}, and then {answer:?}: {:?}", self.order));
            }
        }
        Ok(Proof::Answered)
    }

    fn nothing_stored(&self, reply: &dyn std::fmt::Debug) -> Result<Proof, String> {
        match &self.answer {
            None => Ok(Proof::NothingStored),
            Some(first) => Err(format!(
                "the order was answered {first:?}, and then nothing was stored ({reply:?}): {:?}",
                self.order
            )),
        }
    }

    fn failed(&mut self, error: &CallError) -> Result<Proof, String> {
        match error {
            CallError::Illegal { .. } | CallError::Internal { .. } => Err(format!("{error}: {:?}", self.order)),
            error if error.is_not_executed() => Ok(Proof::NotExecuted),
            _ => Ok(self.lost()),
        }
    }

    /// Takes note of an attempt without an answer.
    pub fn lost(&mut self) -> Proof {
        self.is_doubtful = true;
        Proof::Unknown
    }

    /// Takes note of the answer to a transfer.
    ///
    /// # Errors
    /// If no ledger may answer so.
    pub fn hear_transfer(&mut self, reply: &Result<TransferReply, CallError>) -> Result<Proof, String> {
        match reply {
            Ok(TransferReply::Done(answer)) => {
                // What a transfer was presumed to be refused with says nothing once it has ended.
                self.answered(Answer::Transfer(TransferAnswer { replayed: false, presumed: None, ..answer.clone() }))
            }
            Ok(TransferReply::Pending(_)) => Ok(self.lost()),
            Ok(reply @ TransferReply::NotStored(_)) => self.nothing_stored(reply),
            // Accounts are opened before, and a client captures holds whose placing was answered.
            Ok(
                reply @ (TransferReply::Mismatch { .. } | TransferReply::DebitNotFound | TransferReply::HoldNotFound),
            ) => Err(format!("{reply:?} for {:?}", self.order)),
            Err(error) => self.failed(error),
        }
    }

    /// Takes note of the answer to a hold.
    ///
    /// # Errors
    /// If no ledger may answer so.
    pub fn hear_hold(&mut self, reply: &Result<HoldReply, CallError>) -> Result<Proof, String> {
        match reply {
            Ok(HoldReply::Placed(answer)) => {
                self.answered(Answer::Hold(HoldAnswer { replayed: false, ..answer.clone() }))
            }
            Ok(reply) => Err(format!("{reply:?} for {:?}", self.order)),
            Err(error) => self.failed(error),
        }
    }

    /// Takes note of the answer to a release.
    ///
    /// # Errors
    /// If no ledger may answer so.
    pub fn hear_release(&mut self, reply: &Result<ReleaseReply, CallError>) -> Result<Proof, String> {
        match reply {
            Ok(ReleaseReply::Released { .. }) => self.answered(Answer::Released),
            Ok(ReleaseReply::Refused(refused)) => self.answered(Answer::NotReleased(*refused)),
            Ok(reply @ ReleaseReply::NotFound) => Err(format!("{reply:?} for {:?}", self.order)),
            Err(error) => self.failed(error),
        }
    }
}

/// Takes note of the answer to an atomic group. Every member gets the same proof.
///
/// # Errors
/// If no ledger may answer so.
pub fn hear_group(group: &mut [Record], reply: &Result<AtomicReply, CallError>) -> Result<Proof, String> {
    match reply {
        Ok(AtomicReply::Stored(items)) => {
            for (record, item) in group.iter_mut().zip(items) {
                if record.hear_transfer(&Ok(item.clone()))? != Proof::Answered {
                    return Err(format!("a stored group has the member {item:?}"));
                }
            }
            Ok(Proof::Answered)
        }
        Ok(reply @ (AtomicReply::Failed { .. } | AtomicReply::CrossShard)) => {
            group.iter().try_fold(Proof::NothingStored, |_, record| record.nothing_stored(reply))
        }
        Err(error) => {
            let mut proof = Proof::NotExecuted;
            for record in group {
                proof = record.failed(error)?;
            }
            Ok(proof)
        }
    }
}

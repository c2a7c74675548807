//! The kinds of operations in the cells of the matrix, with their durable steps and their expected results.

use http::Method;
use serde_json::json;
use testkit::{client::account_path, history::payment_body};
use uuid::Uuid;

use super::teller::{Named, Request, Teller};

/// So many payments that the next fold writes a waypoint of both accounts.
const LONG: usize = 70;

/// The operation of a cell. Transfers, captures and reversals are between two shards unless their name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Payment,
    /// The payee is closed.
    RefusedPayment,
    PartialCapture,
    FinalCapture,
    /// The payee is closed.
    RefusedCapture,
    /// A capture of more than its hold, which the source presumes to be refused.
    ExcessiveCapture,
    Reversal,
    /// Nothing is left to reverse, which only the destination knows.
    SecondReversal,
    LocalPayment,
    /// The payer has too little.
    LocalRejection,
    LocalCapture,
    LocalReversal,
    Hold,
    /// The payer has too little.
    RefusedHold,
    Release,
    Expiry,
    /// The metadata of a local payment is erased.
    Erasure,
    /// The metadata of a hold is erased.
    HoldErasure,
    Opening,
    Change,
    /// A request that was executed before its node died is sent again.
    Replay,
    /// A payment is folded.
    Fold,
    /// So many payments are folded that the fold writes waypoints.
    FoldOfWaypoints,
    /// The source folds while the transfer is under way.
    FoldOfSagaBegun,
    /// The source folds while the transfer is under way, and again after it has ended.
    FoldOfSagaEnded,
}

impl Kind {
    pub const ALL: [Self; 25] = [
        Self::Payment,
        Self::RefusedPayment,
        Self::PartialCapture,
        Self::FinalCapture,
        Self::RefusedCapture,
        Self::ExcessiveCapture,
        Self::Reversal,
        Self::SecondReversal,
        Self::LocalPayment,
        Self::LocalRejection,
        Self::LocalCapture,
        Self::LocalReversal,
        Self::Hold,
        Self::RefusedHold,
        Self::Release,
        Self::Expiry,
        Self::Erasure,
        Self::HoldErasure,
        Self::Opening,
        Self::Change,
        Self::Replay,
        Self::Fold,
        Self::FoldOfWaypoints,
        Self::FoldOfSagaBegun,
        Self::FoldOfSagaEnded,
    ];

    /// The durable steps of the operation, by the names that the nodes list.
    pub fn steps(self) -> &'static [&'static str] {
        match self {
            Self::Payment | Self::PartialCapture | Self::Reversal => &["reserve", "credit", "settle"],
            Self::FinalCapture => &["reserve", "credit", "settle", "capture_hold"],
            Self::RefusedPayment | Self::RefusedCapture | Self::SecondReversal => {
                &["reserve", "refuse", "compensate"]
            }
            Self::ExcessiveCapture => &["presume", "refuse", "settle_refused"],
            Self::LocalPayment => &["commit", "post"],
            Self::LocalRejection => &["reject"],
            Self::LocalCapture => &["post", "capture_hold"],
            Self::LocalReversal => &["post"],
            Self::Hold => &["place_hold"],
            Self::RefusedHold => &["reject_hold"],
            Self::Release => &["release_hold"],
            Self::Expiry => &["expire_hold"],
            Self::Erasure => &["erase_transfer"],
            Self::HoldErasure => &["erase_hold"],
            Self::Opening => &["open"],
            Self::Change => &["update"],
            Self::Replay => &["mark"],
            Self::Fold => &["fold_accounts", "fold_position"],
            Self::FoldOfWaypoints => &["fold_waypoints"],
            Self::FoldOfSagaBegun => &["fold_sagas_begun"],
            Self::FoldOfSagaEnded => &["fold_sagas_ended"],
        }
    }

    pub fn is_fold(self) -> bool {
        matches!(self, Self::Fold | Self::FoldOfWaypoints | Self::FoldOfSagaBegun | Self::FoldOfSagaEnded)
    }
}

/// The request of a cell, and its expected results.
#[derive(Debug)]
pub struct Scene {
    pub request: Request,
    /// The status of the answer, or the code of the refusal.
    pub says: &'static str,
    /// The accounts with the posted and held amounts that they have in the end.
    pub accounts: Vec<(String, &'static str, &'static str)>,
    /// A hold with the status that it has in the end.
    pub hold: Option<(Named, &'static str)>,
}

impl Scene {
    /// Opens the accounts of a kind on two shards, with 10.00 for the payer, and executes the operations that the request needs.
    pub async fn set(kind: Kind, teller: &Teller, source: &str, elsewhere: &str) -> anyhow::Result<Self> {
        let destination = match kind {
            Kind::LocalPayment
            | Kind::LocalRejection
            | Kind::LocalCapture
            | Kind::LocalReversal
            | Kind::Erasure
            | Kind::Replay
            | Kind::Fold
            | Kind::FoldOfWaypoints => source,
            _ => elsewhere,
        };
        // The payee of the original pays the reversal.
        let (payers, payees) = match kind {
            Kind::Reversal | Kind::SecondReversal => (destination, source),
            _ => (source, destination),
        };
        let payer = teller.account(payers, "10.00").await?;
        let payee = teller.account(payees, "0.00").await?;
        let scene = |request, says, payers: (&'static str, &'static str), payees: &'static str| Self {
            request,
            says,
            accounts: vec![(payer.clone(), payers.0, payers.1), (payee.clone(), payees, "0.00")],
            hold: None,
        };
        let id = Uuid::now_v7();
        let pays = |amount| Request::payment(id, &payer, &payee, amount);
        let holds = |amount, expires_in_s| Request::hold(id, &payer, &payee, amount, expires_in_s);
        let hold = Named { id, debit: payer.clone() };
        let captures = |body| Request::post(hold.hold_path("/capture"), body);
        let reverses = || {
            let original = Named { id, debit: payer.clone() };
            Request::post(original.transfer_path("/reverse"), json!({"id": Uuid::now_v7(), "amount": "4.00"}))
        };
        let closes_payee = async || {
            let closed = json!({"status": "closed"});
            let request = Request { method: Method::PATCH, path: account_path(&payee), body: closed };
            teller.must(&request, "closed").await
        };
        let other = Uuid::now_v7();
        let set = match kind {
            Kind::Payment | Kind::LocalPayment | Kind::Fold | Kind::FoldOfSagaBegun | Kind::FoldOfSagaEnded => {
                scene(pays("4.00"), "posted", ("6.00", "0.00"), "4.00")
            }
            Kind::Replay => {
                teller.must(&pays("4.00"), "posted").await?;
                scene(pays("4.00"), "posted", ("6.00", "0.00"), "4.00")
            }
            Kind::RefusedPayment => {
                closes_payee().await?;
                scene(pays("4.00"), "account_closed", ("10.00", "0.00"), "0.00")
            }
            Kind::LocalRejection => scene(pays("10.01"), "insufficient_funds", ("10.00", "0.00"), "0.00"),
            Kind::PartialCapture | Kind::FinalCapture | Kind::LocalCapture => {
                teller.must(&holds("10.00", None), "held").await?;
                let is_final = kind != Kind::PartialCapture;
                let request = captures(json!({"id": other, "amount": "4.00", "final": is_final}));
                let held = if is_final { "0.00" } else { "6.00" };
                let status = if is_final { "captured" } else { "held" };
                Self { hold: Some((hold.clone(), status)), ..scene(request, "posted", ("6.00", held), "4.00") }
            }
            Kind::RefusedCapture => {
                teller.must(&holds("10.00", None), "held").await?;
                closes_payee().await?;
                let request = captures(json!({"id": other, "amount": "4.00"}));
                let scene = scene(request, "account_closed", ("10.00", "10.00"), "0.00");
                Self { hold: Some((hold.clone(), "held")), ..scene }
            }
            Kind::ExcessiveCapture => {
                teller.must(&holds("10.00", None), "held").await?;
                let request = captures(json!({"id": other, "amount": "10.01"}));
                let scene = scene(request, "exceeds_hold", ("10.00", "10.00"), "0.00");
                Self { hold: Some((hold.clone(), "held")), ..scene }
            }
            Kind::Reversal | Kind::LocalReversal => {
                teller.must(&pays("4.00"), "posted").await?;
                scene(reverses(), "posted", ("10.00", "0.00"), "0.00")
            }
            Kind::SecondReversal => {
                teller.must(&pays("4.00"), "posted").await?;
                teller.must(&reverses(), "posted").await?;
                // The payee also has money that does not come from the original.
                teller.must(&Request::payment(other, &payer, &payee, "5.00"), "posted").await?;
                scene(reverses(), "already_reversed", ("5.00", "0.00"), "5.00")
            }
            Kind::Hold => {
                let scene = scene(holds("4.00", None), "held", ("10.00", "4.00"), "0.00");
                Self { hold: Some((hold.clone(), "held")), ..scene }
            }
            Kind::RefusedHold => scene(holds("10.01", None), "insufficient_funds", ("10.00", "0.00"), "0.00"),
            Kind::Erasure => {
                let with_note = |request: Request| request.with("metadata", json!({"note": "of a person"}));
                teller.must(&with_note(pays("4.00")), "posted").await?;
                let paid = Named { id, debit: payer.clone() };
                scene(Request::delete(paid.transfer_path("/metadata")), "posted", ("6.00", "0.00"), "4.00")
            }
            Kind::HoldErasure => {
                let placed = holds("4.00", None).with("metadata", json!({"note": "of a person"}));
                teller.must(&placed, "held").await?;
                let request = Request::delete(hold.hold_path("/metadata"));
                let scene = scene(request, "held", ("10.00", "4.00"), "0.00");
                Self { hold: Some((hold.clone(), "held")), ..scene }
            }
            Kind::Release => {
                teller.must(&holds("4.00", None), "held").await?;
                let request = Request::post(hold.hold_path("/release"), json!({}));
                let scene = scene(request, "released", ("10.00", "0.00"), "0.00");
                Self { hold: Some((hold.clone(), "released")), ..scene }
            }
            Kind::Expiry => {
                let scene = scene(holds("4.00", Some(1)), "held", ("10.00", "0.00"), "0.00");
                Self { hold: Some((hold.clone(), "expired")), ..scene }
            }
            Kind::Opening => {
                let opened = teller.new_id(source)?;
                let request = Request::post("/v1/accounts", json!({"id": opened, "asset": testkit::history::ASSET}));
                let mut scene = scene(request, "open", ("10.00", "0.00"), "0.00");
                scene.accounts.push((opened, "0.00", "0.00"));
                scene
            }
            Kind::Change => {
                let (path, body) = (account_path(&payer), json!({"overdraft": "3.00"}));
                let request = Request { method: Method::PATCH, path, body };
                scene(request, "open", ("10.00", "0.00"), "0.00")
            }
            Kind::FoldOfWaypoints => {
                let items: Vec<_> = (0..LONG).map(|_| payment_body(Uuid::now_v7(), &payer, &payee, "0.10")).collect();
                let request = Request::post("/v1/transfers:batch", json!({"transfers": items}));
                scene(request, "posted", ("3.00", "0.00"), "7.00")
            }
        };
        Ok(set)
    }
}

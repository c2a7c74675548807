//! Accounts.

use ledger::{Account, AccountId, AccountStatus, Metadata, Position};

use super::{BadMessage, asset, bad};
use crate::generated as wire;

impl From<&Account> for wire::Account {
    fn from(account: &Account) -> Self {
        Self {
            id: account.id.to_string(),
            asset: account.asset.to_string(),
            status: account.status.code().into(),
            posted: account.posted,
            held: account.held,
            overdraft: Some(account.overdraft.into()),
            max_balance: Some(account.max_balance.into()),
            version: account.version,
            metadata: account.metadata.as_str().to_owned(),
            created_at_us: account.created_at_us,
            updated_at_us: account.updated_at_us,
        }
    }
}

impl TryFrom<wire::Account> for Account {
    type Error = BadMessage;

    /// The journal head stays behind on the shard: it is [`Position::NONE`] here.
    fn try_from(message: wire::Account) -> Result<Self, BadMessage> {
        Ok(Self {
            id: AccountId::any(&message.id).map_err(|e| bad("account.id", e))?,
            asset: asset(&message.asset)?,
            status: account_status(message.status)?,
            posted: message.posted,
            held: message.held,
            overdraft: message.overdraft.ok_or(BadMessage::Missing("overdraft"))?.into(),
            max_balance: message.max_balance.ok_or(BadMessage::Missing("max_balance"))?.into(),
            version: message.version,
            head: Position::NONE,
            opened: Position::NONE,
            metadata: Metadata::from_canonical(&message.metadata),
            created_at_us: message.created_at_us,
            updated_at_us: message.updated_at_us,
        })
    }
}

pub(super) fn account_status(code: u32) -> Result<AccountStatus, BadMessage> {
    let known = u8::try_from(code).ok().and_then(AccountStatus::from_code);
    known.ok_or_else(|| bad("status", format!("{code} is no account status")))
}

//! The accounts that pay opening balances. They are read and checked before anything is paid.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context, bail, ensure};
use ledger::format_minor;
use serde::Deserialize;

use super::{balances::Payer, sender::BatchSender};
use crate::http_client::encoded;

/// An account as a router shows it.
#[derive(Debug, Deserialize)]
pub struct PayerAccount {
    id: String,
    asset: String,
    status: String,
    posted: String,
    available: String,
    overdraft: String,
}

/// Reads the accounts named by `--from`.
pub async fn read(sender: &BatchSender, from: &[String]) -> anyhow::Result<Vec<PayerAccount>> {
    let mut payers = Vec::new();
    for account in from {
        let shown = sender.get(&format!("/v1/accounts/{}", encoded(account))).await?;
        let shown = shown.with_context(|| {
            format!(
                "there is no account {account}: open it with an overdraft, such as {{\"id\": \"{account}\", \"asset\": \
                 \"USD\", \"overdraft\": \"unlimited\"}} to POST /v1/accounts"
            )
        })?;
        payers.push(serde_json::from_value(shown).with_context(|| format!("the account {account}"))?);
    }
    Ok(payers)
}

/// The payers by asset. Each payer must hold a different asset.
pub fn by_asset(accounts: &[PayerAccount]) -> anyhow::Result<BTreeMap<String, Payer>> {
    let mut payers = BTreeMap::new();
    for account in accounts {
        let payer = Payer { account: Arc::from(account.id.as_str()), scale: account.scale() };
        if let Some(other) = payers.insert(account.asset.clone(), payer) {
            bail!(
                "{} and {} both hold {}: name one account for each asset",
                other.account,
                account.id,
                account.asset
            );
        }
    }
    Ok(payers)
}

impl PayerAccount {
    pub fn asset(&self) -> &str {
        &self.asset
    }

    fn scale(&self) -> u32 {
        let decimals = self.posted.split_once('.').map_or(0, |(_, decimals)| decimals.len());
        u32::try_from(decimals).unwrap_or(0)
    }

    /// Fails, with the remedy, unless the account can pay `need` minor units now.
    pub fn must_afford(&self, need: i128) -> anyhow::Result<()> {
        ensure!(
            self.status == "open",
            "the account {} is {} and cannot pay: PATCH /v1/accounts/{} with {{\"status\": \"open\"}}",
            self.id,
            self.status,
            encoded(&self.id)
        );
        if self.overdraft == "unlimited" || need <= 0 {
            return Ok(());
        }
        let (available, overdraft) = (minor(&self.available)?, minor(&self.overdraft)?);
        let print = |minor: i128| format_minor(minor, self.scale());
        ensure!(
            available >= need,
            "the account {} has {} {} available, and the file needs {}: PATCH /v1/accounts/{} with {{\"overdraft\": \
             \"unlimited\"}}, or with an overdraft of at least {}",
            self.id,
            print(available),
            self.asset,
            print(need),
            encoded(&self.id),
            print(overdraft + need - available),
        );
        Ok(())
    }
}

/// Parses an amount as a router prints it, with all decimals of its asset. The result is wider than a balance, because twice the largest
/// balance may be available.
fn minor(text: &str) -> anyhow::Result<i128> {
    text.replacen('.', "", 1).parse().with_context(|| format!("{text:?} is no amount"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(asset: &str, status: &str, available: &str, overdraft: &str) -> PayerAccount {
        let text = serde_json::json!({"id": "{o}:x", "asset": asset, "status": status, "posted": "-1.00", "held": "0.00",
            "available": available, "overdraft": overdraft, "version": 3});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn an_account_without_the_means_is_refused_with_the_overdraft_that_it_needs() {
        account("USD", "open", "unlimited", "unlimited").must_afford(i128::MAX).unwrap();
        account("USD", "open", "5.00", "6.00").must_afford(500).unwrap();
        account("USD", "open", "0.00", "0.00").must_afford(0).unwrap();
        let error = account("USD", "open", "5.00", "6.00").must_afford(501).unwrap_err().to_string();
        assert!(error.contains("has 5.00 USD available, and the file needs 5.01"), "{error}");
        assert!(error.contains("/v1/accounts/%7Bo%7D%3Ax") && error.contains("at least 6.01"), "{error}");
        let error = account("USD", "frozen", "unlimited", "unlimited").must_afford(1).unwrap_err().to_string();
        assert!(error.contains("is frozen"), "{error}");
    }

    #[test]
    fn each_asset_has_one_payer() {
        let two = [account("USD", "open", "0.00", "0.00"), account("EUR", "open", "0.00", "0.00")];
        let payers = by_asset(&two).unwrap();
        assert_eq!(payers.keys().collect::<Vec<_>>(), ["EUR", "USD"]);
        assert_eq!(payers["USD"].scale, 2);
        let same = [account("USD", "open", "0.00", "0.00"), account("USD", "open", "0.00", "0.00")];
        assert!(by_asset(&same).unwrap_err().to_string().contains("both hold USD"));
    }
}

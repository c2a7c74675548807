//! The bank's file: transactions of the Czech bank of the PKDD'99 Discovery Challenge, one on each line, as CSV or gzipped CSV.

use std::{fmt, fs::File, io::Read, path::Path};

use anyhow::{Context, bail, ensure};
use flate2::read::MultiGzDecoder;

/// Digits after the decimal point of a CZK amount.
pub const SCALE: u32 = 2;
const HEADER: &str = "trans_id,account_id,date,type,operation,amount,balance,k_symbol,bank,account";
const COLUMNS: usize = 10;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The largest accepted file. The whole file of the challenge has a million lines and is smaller.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub id: u64,
    pub account: u64,
    pub date: Date,
    /// Change of the account in minor units: credits above zero, debits below.
    pub change: i64,
    /// The account's balance after the transaction, as the bank recorded and rounded it.
    pub balance: i64,
    pub partner: Partner,
    /// The bank's own words for the transaction, which become metadata of the transfer.
    pub operation: String,
    pub symbol: String,
}

/// The other side of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Partner {
    Cash,
    Interest,
    Fees,
    Bank(String),
}

impl fmt::Display for Partner {
    /// The partner's account id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cash => f.write_str("bank:cash"),
            Self::Interest => f.write_str("bank:interest"),
            Self::Fees => f.write_str("bank:fees"),
            Self::Bank(code) => write!(f, "bank:partner:{code}"),
        }
    }
}

/// A day of the twentieth century, written `yymmdd` in the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(u32);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "19{:02}-{:02}-{:02}", self.0 / 10_000, self.0 / 100 % 100, self.0 % 100)
    }
}

/// Reads the file, gzipped or not, in the order of its lines.
pub fn read(path: &Path) -> anyhow::Result<Vec<Transaction>> {
    let describe = || format!("the bank's file {}", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(describe)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).with_context(describe)?;
    let text = if bytes.starts_with(&GZIP_MAGIC) {
        let mut text = String::new();
        MultiGzDecoder::new(bytes.as_slice())
            .take(MAX_FILE_BYTES)
            .read_to_string(&mut text)
            .with_context(describe)?;
        text
    } else {
        String::from_utf8(bytes).with_context(describe)?
    };
    parse(&text).with_context(describe)
}

fn parse(text: &str) -> anyhow::Result<Vec<Transaction>> {
    let mut lines = text.lines();
    ensure!(lines.next() == Some(HEADER), "line 1: the header is not {HEADER:?}");
    let transactions = lines
        .enumerate()
        .map(|(index, line)| parse_line(line).with_context(|| format!("line {}", index + 2)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut ids: Vec<u64> = transactions.iter().map(|t| t.id).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("transaction {} is there twice", twice[0]);
    }
    Ok(transactions)
}

fn parse_line(line: &str) -> anyhow::Result<Transaction> {
    // This file of the challenge has no quoted columns.
    ensure!(!line.contains('"'), "quoted fields are not read");
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let fields: [&str; COLUMNS] =
        fields.try_into().map_err(|f: Vec<&str>| anyhow::anyhow!("{} columns instead of {COLUMNS}", f.len()))?;
    let [id, account, date, direction, operation, amount, balance, symbol, bank, _] = fields;
    let amount = parse_amount(amount).context("amount")?;
    ensure!(amount > 0, "amount: {amount} is not above zero");
    let change = match direction {
        "PRIJEM" => amount,
        "VYDAJ" | "VYBER" => -amount,
        other => bail!("type: {other:?} is none of PRIJEM, VYDAJ, VYBER"),
    };
    Ok(Transaction {
        id: id.parse().context("trans_id")?,
        account: account.parse().context("account_id")?,
        date: parse_date(date).context("date")?,
        change,
        balance: parse_amount(balance).context("balance")?,
        partner: partner(operation, symbol, bank)?,
        operation: operation.to_owned(),
        symbol: symbol.to_owned(),
    })
}

fn partner(operation: &str, symbol: &str, bank: &str) -> anyhow::Result<Partner> {
    // The symbol is examined first, because the bank books fees and sanction interest like cash withdrawals.
    match (operation, symbol) {
        (_, "UROK" | "SANKC. UROK") => Ok(Partner::Interest),
        (_, "SLUZBY") => Ok(Partner::Fees),
        ("VKLAD" | "VYBER" | "VYBER KARTOU", _) => Ok(Partner::Cash),
        ("PREVOD Z UCTU" | "PREVOD NA UCET", _) => {
            ensure!(!bank.is_empty(), "bank: a transfer from or to another bank does not name the bank");
            Ok(Partner::Bank(bank.to_owned()))
        }
        (operation, symbol) => bail!("operation: {operation:?} with k_symbol {symbol:?} is unknown"),
    }
}

fn parse_date(text: &str) -> anyhow::Result<Date> {
    let number: u32 = text.parse()?;
    let (month, day) = (number / 100 % 100, number % 100);
    ensure!(text.len() == 6 && (1..=12).contains(&month) && (1..=31).contains(&day), "{text:?} is no yymmdd");
    Ok(Date(number))
}

fn parse_amount(text: &str) -> anyhow::Result<i64> {
    let minor = ledger::parse_minor(text.strip_prefix('-').unwrap_or(text), SCALE)?;
    Ok(if text.starts_with('-') { -minor } else { minor })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> anyhow::Result<Transaction> {
        parse(&format!("{HEADER}\n{line}\n")).map(|mut all| all.remove(0))
    }

    #[test]
    fn lines_become_transactions() {
        let deposit = one("695247,2378,930101,PRIJEM,VKLAD,700.00,700.00,,,").unwrap();
        assert_eq!((deposit.id, deposit.account, deposit.change, deposit.balance), (695_247, 2378, 70_000, 70_000));
        assert_eq!((deposit.date.to_string(), deposit.partner), ("1993-01-01".to_owned(), Partner::Cash));
        let withdrawal = one("1176458,4034,930628,VYBER,VYBER,31840.00,-2994.60,,,").unwrap();
        assert_eq!((withdrawal.change, withdrawal.balance), (-3_184_000, -299_460));
    }

    #[test]
    fn partners_follow_from_symbol_operation_and_bank() {
        for (line, partner) in [
            ("1,1,930131,PRIJEM,,1.00,1.00,UROK,,", "bank:interest"),
            ("1,1,930131,VYDAJ,VYBER,1.00,1.00,SANKC. UROK,,", "bank:interest"),
            ("1,1,930131,VYDAJ,VYBER,1.00,1.00,SLUZBY,,", "bank:fees"),
            ("1,1,930131,VYDAJ,VYBER KARTOU,1.00,1.00,,,", "bank:cash"),
            ("1,1,930131,VYDAJ,PREVOD NA UCET,1.00,1.00,SIPO,YZ,123", "bank:partner:YZ"),
            ("1,1,930131,PRIJEM,PREVOD Z UCTU,1.00,1.00,DUCHOD,AB,123", "bank:partner:AB"),
        ] {
            assert_eq!(one(line).unwrap().partner.to_string(), partner, "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_line_and_column() {
        for (line, says) in [
            ("1,1,930131,PRIJEM,VKLAD,1.00,1.00,,", "line 2: 9 columns"),
            ("1,1,931331,PRIJEM,VKLAD,1.00,1.00,,,", "line 2: date"),
            ("1,1,930131,VKLAD,VKLAD,1.00,1.00,,,", "line 2: type"),
            ("1,1,930131,PRIJEM,VKLAD,0.00,1.00,,,", "line 2: amount"),
            ("1,1,930131,PRIJEM,VKLAD,1.001,1.00,,,", "line 2: amount"),
            ("1,1,930131,PRIJEM,PREVOD Z UCTU,1.00,1.00,,,", "line 2: bank"),
            ("1,1,930131,PRIJEM,DAR,1.00,1.00,,,", "line 2: operation"),
        ] {
            let error = format!("{:#}", one(line).unwrap_err());
            assert!(error.starts_with(says), "{line}: {error}");
        }
        let twice = "1,1,930131,PRIJEM,VKLAD,1.00,1.00,,,\n1,2,930131,PRIJEM,VKLAD,1.00,1.00,,,";
        assert!(one(twice).unwrap_err().to_string().contains("twice"));
    }
}

//! Batches of transfers, as JSON and by lines.

use super::*;

fn with_id(number: u32) -> String {
    body(&[("id", &format!("\"01890a5d-ac96-774b-bcce-{number:012x}\""))])
}

#[test]
fn batches_are_read() {
    let rulebook = rulebook();
    let batch = transfer_batch(&batch_of(&[with_id(1), with_id(2)]), &rulebook).unwrap();
    assert_eq!((batch.transfers.len(), batch.atomic), (2, false));
    let atomic = format!("{{\"atomic\": true, \"transfers\": [{}]}}", with_id(1));
    assert!(transfer_batch(&atomic, &rulebook).unwrap().atomic);

    let most: Vec<_> = (1..=10_000).map(with_id).collect();
    assert_eq!(transfer_batch(&batch_of(&most), &rulebook).unwrap().transfers.len(), 10_000);
}

#[test]
fn batches_are_checked_item_by_item() {
    let bad = body(&[("id", &format!("\"{OTHER_ID}\"")), ("amount", "\"-1\"")]);
    assert_batch_refused(&batch_of(&[body(&[]), bad]), "invalid_amount", "/transfers/1/amount");
    assert_batch_refused(&batch_of(&[body(&[]), body(&[])]), "duplicate_id", "/transfers/1/id");
    // One id in two spellings is one id.
    let upper = body(&[("id", &format!("\"{}\"", ID.to_uppercase()))]);
    assert_batch_refused(&batch_of(&[body(&[]), upper]), "duplicate_id", "/transfers/1/id");
    assert_batch_refused(&batch_of(&[body(&[("id", "-")])]), "idempotency_required", "/transfers/0/id");
    assert_batch_refused(&batch_of(&["5".to_owned()]), "invalid_json", "/transfers/0");
    for (text, pointer) in [
        ("{}", "/transfers"),
        ("{\"transfers\": []}", "/transfers"),
        ("{\"transfers\": {}}", "/transfers"),
        ("{\"transfers\": null}", "/transfers"),
        ("[]", ""),
    ] {
        assert_batch_refused(text, "invalid_json", pointer);
    }
    let atomic = format!("{{\"atomic\": \"yes\", \"transfers\": [{}]}}", body(&[]));
    assert_batch_refused(&atomic, "invalid_json", "/atomic");
    let unknown = format!("{{\"dry_run\": true, \"transfers\": [{}]}}", body(&[]));
    assert_batch_refused(&unknown, "unknown_field", "/dry_run");
}

#[test]
fn batches_are_bounded_and_so_are_their_errors() {
    let many = |count: usize, item: &str| batch_of(&vec![item.to_owned(); count]);
    let problem = transfer_batch(&many(10_001, "{}"), &rulebook()).unwrap_err();
    assert_eq!(problem.code(), Code::BatchTooLarge);
    let problem = transfer_batch(&many(600_000, "1"), &rulebook()).unwrap_err();
    assert_eq!(problem.code(), Code::BatchTooLarge);
    let problem = transfer_batch(&many(10_000, "{}"), &rulebook()).unwrap_err();
    assert!(problem.errors().len() <= 110, "{}", problem.errors().len());

    // A code that only shows up after the list is full still decides.
    let mut items = vec![body(&[("asset", "\"x\"")]); 500];
    items.push(body(&[("memo", "1")]));
    assert_batch_refused(&batch_of(&items), "unknown_field", "/transfers/500/memo");
}

#[test]
fn ndjson_is_a_batch_by_lines() {
    let rulebook = rulebook();
    let lines = format!("{}\r\n\n{}\n", with_id(1), with_id(2));
    assert_eq!(transfer_lines(&lines, &rulebook).unwrap().len(), 2);
    assert_eq!(transfer_lines(with_id(1).as_str(), &rulebook).unwrap().len(), 1);

    for (text, code, pointer) in [
        (String::new(), "invalid_json", ""),
        ("\n \n".to_owned(), "invalid_json", ""),
        (format!("{}\n{{", with_id(1)), "invalid_json", "/1"),
        (format!("{}\n{}", with_id(1), with_id(1)), "duplicate_id", "/1/id"),
        (format!("{}\n\n{}", with_id(1), body(&[("amount", "5")])), "invalid_amount", "/1/amount"),
        (format!("[{}]", with_id(1)), "invalid_json", "/0"),
    ] {
        let problem = transfer_lines(&text, &rulebook).unwrap_err();
        assert_eq!(problem.code().as_str(), code, "{text}");
        assert!(places(&problem).contains(&(code.to_owned(), pointer.to_owned())), "{text}: {:?}", problem.errors());
    }
    let many = format!("{}\n", "{}").repeat(10_001);
    assert_eq!(transfer_lines(&many, &rulebook).unwrap_err().code(), Code::BatchTooLarge);
}

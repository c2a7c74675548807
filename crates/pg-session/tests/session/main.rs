//! Sessions with a real PostgreSQL server.

mod server;

use std::time::Duration;

use bytes::Bytes;
use pg_session::{Completed, ConnectOptions, CopyBuffer, Error, Session, Severity, TransactionStatus};
use server::{PASSWORD, server, session};
use tokio::time::{sleep, timeout};

/// A test that waits longer is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

fn rows(ids: impl IntoIterator<Item = i64>, text: &str) -> Bytes {
    let mut buffer = CopyBuffer::new();
    buffer.begin();
    for id in ids {
        buffer.row(2);
        buffer.int8(id);
        buffer.text(text);
    }
    buffer.finish()
}

fn tags(completed: &Completed) -> Vec<&str> {
    completed.tags.iter().map(|tag| tag.as_str()).collect()
}

fn texts(completed: &Completed) -> Vec<Vec<Option<&str>>> {
    completed.rows.iter().map(|row| row.iter().map(Option::as_deref).collect()).collect()
}

async fn ask(session: &mut Session, query: &str) -> String {
    let completed = session.run(query, None).await.expect(query);
    completed.rows[0][0].clone().expect("the answer is not null")
}

/// Runs the script without a chance to hang.
async fn run(session: &mut Session, script: &str, copy: Option<Bytes>) -> Result<Completed, Error> {
    timeout(PATIENCE, session.run(script, copy)).await.expect("the script ends")
}

/// Creates a table `name` that lives as long as the server.
async fn create(session: &mut Session, name: &str) {
    session
        .run(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, body text)"), None)
        .await
        .expect("the table is created");
}

#[tokio::test]
async fn a_transaction_with_rows_is_one_script() {
    let mut session = session().await;
    create(&mut session, "flight").await;
    let script = "BEGIN; LOCK TABLE flight IN EXCLUSIVE MODE; INSERT INTO flight VALUES (1, 'one'), (2, NULL); \
                  SELECT id, body FROM flight ORDER BY id; UPDATE flight SET body = 'x' WHERE id = 2; \
                  COPY flight (id, body) FROM STDIN (FORMAT binary); COMMIT";
    let completed = run(&mut session, script, Some(rows(10..510, "añ"))).await.unwrap();
    let expected = ["BEGIN", "LOCK TABLE", "INSERT 0 2", "SELECT 2", "UPDATE 1", "COPY 500", "COMMIT"];
    assert_eq!(tags(&completed), expected);
    assert_eq!(completed.tags[5].rows(), Some(500));
    assert_eq!(texts(&completed), [[Some("1"), Some("one")], [Some("2"), None]]);
    assert_eq!((completed.warnings.len(), completed.transaction), (0, TransactionStatus::Idle));
    assert_eq!(ask(&mut session, "SELECT count(*) FROM flight").await, "502");
    assert_eq!(ask(&mut session, "SELECT body FROM flight WHERE id = 509").await, "añ");

    // A result set without rows replaces an earlier one, and an empty script is no statement.
    let completed = session.run("SELECT 1; SELECT 1 WHERE false; BEGIN", None).await.unwrap();
    assert_eq!((completed.rows.len(), completed.transaction), (0, TransactionStatus::Open));
    assert_eq!(session.run("", None).await.unwrap().tags, []);
    session.close().await;
}

#[tokio::test]
async fn every_type_arrives_as_it_was_written() {
    let mut session = session().await;
    let table = "CREATE TEMP TABLE kinds (a smallint, b int, c bigint, d boolean, e uuid, f text, g bytea, h text)";
    session.run(table, None).await.unwrap();
    let mut buffer = CopyBuffer::new();
    buffer.begin();
    buffer.row(8);
    buffer.int2(i16::MIN);
    buffer.int4(i32::MAX);
    buffer.int8(i64::MIN);
    buffer.bool(true);
    buffer.uuid(*b"0123456789abcdef");
    buffer.text("tab\tand\nline");
    buffer.bytea(&[0, 255]);
    buffer.optional(None, CopyBuffer::text);
    session.run("COPY kinds FROM STDIN (FORMAT binary)", Some(buffer.finish())).await.unwrap();
    let completed = session.run("SELECT * FROM kinds", None).await.unwrap();
    let expected = [
        Some("-32768"),
        Some("2147483647"),
        Some("-9223372036854775808"),
        Some("t"),
        Some("30313233-3435-3637-3839-616263646566"),
        Some("tab\tand\nline"),
        Some("\\x00ff"),
        None,
    ];
    assert_eq!(texts(&completed), [expected]);
}

#[tokio::test]
async fn an_error_leaves_nothing_stored_and_the_session_usable() {
    let mut session = session().await;
    create(&mut session, "refused").await;
    let copy = "COPY refused FROM STDIN (FORMAT binary)";
    for (before, ids, code) in [
        ("INSERT INTO refused VALUES (7, '')", [7, 8], "23505"),
        ("INSERT INTO refused VALUES (1, ''); SELECT 1/0", [7, 8], "22012"),
    ] {
        let script = format!("BEGIN; {before}; {copy}; COMMIT");
        let error = run(&mut session, &script, Some(rows(ids, "x"))).await.unwrap_err();
        assert!(matches!(&error, Error::Statement(_)), "{error:?}");
        let message = error.server().unwrap();
        assert_eq!((message.severity, message.code.as_str()), (Severity::Error, code));
        if code == "23505" {
            assert_eq!(message.constraint.as_deref(), Some("refused_pkey"));
            assert_eq!(message.table.as_deref(), Some("refused"));
            assert!(message.detail.as_deref().unwrap().contains("(id)=(7)"), "{message:?}");
        }
        assert_eq!(session.transaction(), TransactionStatus::Failed);
        let in_failed = session.run("SELECT 1", None).await.unwrap_err();
        assert_eq!(in_failed.code(), Some("25P02"));
        let completed = session.run("ROLLBACK", None).await.unwrap();
        assert_eq!((tags(&completed), completed.transaction), (vec!["ROLLBACK"], TransactionStatus::Idle));
        assert_eq!(ask(&mut session, "SELECT count(*) FROM refused").await, "0");
    }
    // The rows reach the server in the right state again.
    let completed = run(&mut session, copy, Some(rows([1, 2], "x"))).await.unwrap();
    assert_eq!(tags(&completed), ["COPY 2"]);
}

#[tokio::test]
async fn rows_and_scripts_that_do_not_match_do_not_hang() {
    let mut session = session().await;
    create(&mut session, "unmatched").await;
    let copy = "COPY unmatched FROM STDIN (FORMAT binary)";
    let error = run(&mut session, copy, None).await.unwrap_err();
    assert!(matches!(&error, Error::Statement(message) if message.message.contains("no rows")), "{error:?}");
    let error = run(&mut session, &format!("{copy}; {copy}"), Some(rows([1], ""))).await.unwrap_err();
    assert_eq!(error.code(), Some("57014"));
    assert_eq!(ask(&mut session, "SELECT count(*) FROM unmatched").await, "0");
    // A COPY without rows, with and without a header.
    assert_eq!(tags(&run(&mut session, copy, Some(rows([], ""))).await.unwrap()), ["COPY 0"]);
    let text = "COPY unmatched FROM STDIN";
    assert_eq!(tags(&run(&mut session, text, Some(Bytes::new())).await.unwrap()), ["COPY 0"]);

    let error = run(&mut session, "SELECT 1\0", None).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(reason) if reason.contains("nothing was sent")), "{error:?}");
    assert_eq!(ask(&mut session, "SELECT 1").await, "1");

    let error = run(&mut session, "SELECT 1", Some(rows([1], ""))).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(_)) && !session.is_usable(), "{error:?}");
    let mut session = server::session().await;
    let error = run(&mut session, "COPY unmatched TO STDOUT", None).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(reason) if reason.contains("STDOUT")), "{error:?}");
    let error = run(&mut session, "SELECT 1", None).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(reason) if reason.contains("over")), "{error:?}");
}

/// Sends 20 MB of rows while the server refuses them, takes them, or itself sends 20 MB of notices.
async fn large(session: &mut Session, table: &str) {
    create(session, table).await;
    let payload = rows(0..20_000, &"x".repeat(1000));
    let copy = format!("COPY {table} FROM STDIN (FORMAT binary)");
    let error =
        run(session, &format!("SELECT 1/0; {copy}"), Some(payload.clone())).await.expect_err("the server refuses it");
    assert_eq!(error.code(), Some("22012"));
    let notices = "DO $$BEGIN FOR i IN 1..20000 LOOP RAISE WARNING '%', repeat('x', 1000); END LOOP; END$$";
    let script = format!("BEGIN; {notices}; {copy}; COMMIT");
    let completed = run(session, &script, Some(payload.clone())).await.expect("the server takes it");
    assert_eq!(tags(&completed), ["BEGIN", "DO", "COPY 20000", "COMMIT"]);
    assert_eq!(completed.warnings.len(), 100);
    let error = run(session, &copy, Some(payload)).await.expect_err("the server refuses it");
    assert_eq!(error.code(), Some("23505"));
    let script = format!("/*{}*/ SELECT sum(length(body)) FROM {table}", "x".repeat(4_000_000));
    assert_eq!(
        run(session, &script, None).await.expect("the server takes it").rows[0][0].as_deref(),
        Some("20000000")
    );
    let completed = run(session, &format!("SELECT body FROM {table}"), None).await.expect("the server takes it");
    assert_eq!(completed.rows.len(), 20_000);
}

#[tokio::test]
async fn large_scripts_do_not_deadlock() {
    large(&mut session().await, "large_tcp").await;
}

#[tokio::test]
async fn large_scripts_do_not_deadlock_over_tls() {
    if server().tls {
        let mut session = server().connect("only_tls", "sslmode=require").await.unwrap();
        session.run("CREATE TEMP TABLE mine ()", None).await.unwrap();
        large(&mut session, "pg_temp.large_tls").await;
    }
}

#[tokio::test]
async fn warnings_are_reported_and_notices_are_not() {
    let mut session = session().await;
    let script = "DO $$BEGIN RAISE WARNING 'careful' USING ERRCODE = '01004', HINT = 'look'; RAISE NOTICE 'n'; END$$";
    let completed = session.run(script, None).await.unwrap();
    assert_eq!(tags(&completed), ["DO"]);
    let [warning] = &completed.warnings[..] else { panic!("{completed:?}") };
    assert_eq!((warning.severity, warning.message.as_str()), (Severity::Warning, "careful"));
    assert_eq!((warning.code.as_str(), warning.hint.as_deref()), ("01004", Some("look")));
}

#[tokio::test]
async fn a_terminated_session_says_so() {
    let mut other = session().await;
    // While it waits for a script.
    let mut idle = session().await;
    assert!(!idle.has_ended());
    let terminate = format!("SELECT pg_terminate_backend({}, 5000)", idle.backend_pid());
    assert_eq!(ask(&mut other, &terminate).await, "t");
    // The server closes the socket a moment after the backend has gone.
    while !idle.has_ended() {
        sleep(Duration::from_millis(1)).await;
    }
    let error = run(&mut idle, "SELECT 1", None).await.unwrap_err();
    assert!(matches!(&error, Error::Terminated(_) | Error::Io(_)), "{error:?}");
    assert!(!idle.is_usable());
    // While it runs one, and while many rows are on their way.
    let mut busy = session().await;
    create(&mut busy, "terminated").await;
    for (script, copy) in [
        ("SELECT pg_sleep(60)", None),
        ("SELECT pg_sleep(60); COPY terminated FROM STDIN (FORMAT binary)", Some(rows(0..20_000, &"x".repeat(1000)))),
    ] {
        let mut busy = session().await;
        let terminate = format!("SELECT pg_terminate_backend({})", busy.backend_pid());
        let (result, _) = tokio::join!(run(&mut busy, script, copy), async {
            sleep(Duration::from_millis(200)).await;
            ask(&mut other, &terminate).await
        });
        match result.unwrap_err() {
            Error::Terminated(message) => {
                assert_eq!((message.severity, message.code.as_str()), (Severity::Fatal, "57P01"));
            }
            Error::Io(_) => {}
            error => panic!("{error:?}"),
        }
        assert!(!busy.is_usable());
    }
}

#[tokio::test]
async fn an_abandoned_script_poisons_the_session() {
    let mut session = session().await;
    assert!(timeout(Duration::from_millis(100), session.run("SELECT pg_sleep(30)", None)).await.is_err());
    assert!(!session.is_usable());
    let error = run(&mut session, "SELECT 1", None).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol(reason) if reason.contains("abandoned")), "{error:?}");
    session.close().await;
}

#[tokio::test]
async fn passwords_are_checked_and_never_shown() {
    let server = server();
    let encoded = PASSWORD.replace(' ', "%20");
    for user in ["by_scram", "by_md5", "by_password"] {
        let mut session = server.connect(&format!("{user}:{encoded}"), "").await.unwrap();
        assert_eq!(ask(&mut session, "SELECT current_user").await, user);

        let error = server.connect(&format!("{user}:wrong-secret"), "").await.unwrap_err();
        assert!(matches!(&error, Error::Terminated(_)), "{error:?}");
        assert_eq!(error.code(), Some("28P01"));
        assert!(error.to_string().contains("password authentication failed"), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");

        let error = server.connect(user, "").await.unwrap_err();
        assert!(matches!(&error, Error::Authentication(reason) if reason.contains("URL")), "{error:?}");
    }
}

#[tokio::test]
async fn the_session_starts_with_its_settings() {
    let server = server();
    let url = format!("postgres:///postgres?user=postgres&host={}&port={}", server.folder.display(), server.port);
    let options = ConnectOptions::from_url(&url)
        .unwrap()
        .application_name("lane 7")
        .options([("search_path", "\"led ger\", public"), ("statement_timeout", "12s")]);
    let mut session = Session::connect(&options).await.unwrap();
    for (setting, value) in [
        ("application_name", "lane 7"),
        ("search_path", "\"led ger\", public"),
        ("statement_timeout", "12s"),
        ("client_encoding", "UTF8"),
        ("timezone", "UTC"),
    ] {
        assert_eq!(ask(&mut session, &format!("SHOW {setting}")).await, value);
    }
    let pid = session.backend_pid().to_string();
    assert_eq!(ask(&mut session, "SELECT pg_backend_pid()").await, pid);
}

#[tokio::test]
async fn a_refused_session_tells_the_reason() {
    let server = server();
    let url = format!("postgres://postgres@127.0.0.1:{}/absent?sslmode=disable", server.port);
    let error = Session::connect(&ConnectOptions::from_url(&url).unwrap()).await.unwrap_err();
    assert_eq!(error.code(), Some("3D000"));
    let error = server.connect("postgres", "options=-c%20nothing=1").await.unwrap_err();
    assert_eq!(error.code(), Some("42704"));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("postgres://postgres@{closed}/postgres");
    let error = Session::connect(&ConnectOptions::from_url(&url).unwrap()).await.unwrap_err();
    assert!(matches!(&error, Error::Io(_)), "{error:?}");
}

#[tokio::test]
async fn tls_is_used_and_checked_as_the_mode_says() {
    let server = server();
    if !server.tls {
        let error = server.connect("postgres", "sslmode=require").await.unwrap_err();
        assert!(matches!(&error, Error::Tls(_)), "{error:?}");
        server.connect("postgres", "sslmode=prefer").await.unwrap();
        return;
    }
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let root = format!("sslrootcert={}/ca.pem", server.folder.display());
    let file = server.folder.join("server.pem");
    let pem = std::fs::read_to_string(&file).unwrap();
    let other = format!("sslrootcert={}", percent(&pem));
    let connect = async |host: &str, parameters: &str| {
        let url = format!("postgres://only_tls@{host}:{}/postgres?{parameters}", server.port);
        Session::connect(&ConnectOptions::from_url(&url).unwrap()).await
    };
    for (host, parameters) in [
        ("127.0.0.1", "sslmode=prefer"),
        ("127.0.0.1", "sslmode=require"),
        ("127.0.0.1", &format!("sslmode=require&{root}")),
        ("127.0.0.1", &format!("sslmode=verify-ca&{root}")),
        ("localhost", &format!("sslmode=verify-full&{root}")),
    ] {
        let mut session = connect(host, parameters).await.unwrap_or_else(|error| panic!("{parameters}: {error:?}"));
        assert_eq!(ask(&mut session, encrypted).await, "t", "{parameters}");
        session.close().await;
    }
    for (host, parameters) in [
        ("127.0.0.1", &*format!("sslmode=verify-full&{root}")),
        ("localhost", "sslmode=verify-ca"),
        ("localhost", "sslmode=verify-full"),
        ("localhost", &format!("sslmode=verify-ca&{other}")),
        ("localhost", &format!("sslmode=require&{other}")),
        ("localhost", "sslmode=verify-ca&sslrootcert=/absent.pem"),
    ] {
        let error = connect(host, parameters).await.unwrap_err();
        assert!(matches!(&error, Error::Tls(_)), "{parameters}: {error:?}");
    }
    let error = connect("127.0.0.1", "sslmode=disable").await.unwrap_err();
    assert_eq!(error.code(), Some("28000"));
    // SCRAM without channel binding is accepted over TLS.
    let login = format!("by_scram:{}", PASSWORD.replace(' ', "%20"));
    let mut session = server.connect(&login, "sslmode=require").await.unwrap();
    assert_eq!(ask(&mut session, encrypted).await, "t");
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

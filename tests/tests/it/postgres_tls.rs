//! Tests of connections to a PostgreSQL that accepts TLS only. The lane's own session and the pools of sqlx must check its certificate in
//! the same way.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use ledger::Limit;
use pg_session::{ConnectOptions, Session};
use shard_database::DatabaseUrl;
use shard_map::{Shard, ShardMap, SlotRange};
use sqlx::{Connection, PgConnection};
use testkit::{
    node::{self, CLUSTER, Folder, Node, NodeConfig},
    postgres::Postgres,
    programs::program,
};

/// Makes an authority with `shardctl`, and a certificate for a server at `host`. Returns their folder.
fn authority(folder: &Folder, name: &str, host: &str) -> anyhow::Result<PathBuf> {
    let tls = folder.path().join(name);
    let made =
        Command::new(program("shardctl")?).args(["tls", "init", "--router", host, "--dir"]).arg(&tls).output()?;
    expect!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(tls)
}

/// Connects with both libraries. Returns the result of each.
async fn connect(url: &str) -> anyhow::Result<[Result<(), String>; 2]> {
    let session = Session::connect(&ConnectOptions::from_url(url)?).await.map_err(|error| error.to_string());
    let pooled = PgConnection::connect_with(&DatabaseUrl::new(url)?.connect_options()).await;
    let pooled = pooled.map_err(|error| error.to_string());
    let results = [session.as_ref().map(drop).map_err(Clone::clone), pooled.as_ref().map(drop).map_err(Clone::clone)];
    if let Ok(session) = session {
        session.close().await;
    }
    if let Ok(connection) = pooled {
        connection.close().await?;
    }
    Ok(results)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_libraries_check_the_certificate_of_the_database_alike() -> anyhow::Result<()> {
    let folder = Folder::create()?;
    let server = Postgres::start(&folder, "pg").await?;
    server.create_database("shard", "").await?;
    let (own, other) = (authority(&folder, "tls", "localhost")?, authority(&folder, "other", "localhost")?);
    server.encrypts(&own.join("https.pem"), &own.join("https.key")).await?;
    let port = server.url("shard").rsplit_once(':').context("no port")?.1.to_owned();
    let url = |host: &str, parameters: &str| format!("postgres://shardledger@{host}:{port}?{parameters}");
    let root = |authority: &Path| format!("sslrootcert={}", authority.join("ca.pem").display());

    for (host, parameters) in [
        ("localhost", format!("sslmode=verify-full&{}", root(&own))),
        ("127.0.0.1", format!("sslmode=verify-ca&{}", root(&own))),
        ("127.0.0.1", format!("sslmode=require&{}", root(&own))),
        ("127.0.0.1", "sslmode=require".to_owned()),
        ("127.0.0.1", "sslmode=prefer".to_owned()),
    ] {
        let connected = connect(&url(host, &parameters)).await?;
        expect!(connected.iter().all(Result::is_ok), "{host} {parameters}: {connected:?}");
    }
    for (host, parameters, reason) in [
        // The certificate is for localhost, not for this address.
        ("127.0.0.1", format!("sslmode=verify-full&{}", root(&own)), "not valid for name"),
        ("localhost", format!("sslmode=verify-full&{}", root(&other)), "UnknownIssuer"),
        ("localhost", format!("sslmode=verify-ca&{}", root(&other)), "UnknownIssuer"),
        ("localhost", format!("sslmode=require&{}", root(&other)), "UnknownIssuer"),
        // No public authority has signed the certificate.
        ("localhost", "sslmode=verify-full".to_owned(), "UnknownIssuer"),
        ("localhost", "sslmode=verify-full&sslrootcert=/absent.pem".to_owned(), "No such file"),
        ("localhost", "sslmode=disable".to_owned(), "pg_hba.conf rejects"),
    ] {
        let refused = connect(&url(host, &parameters)).await?;
        let says = |it: &Result<(), String>| it.as_ref().is_err_and(|error| error.contains(reason));
        expect!(refused.iter().all(says), "{host} {parameters}: {refused:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_session_of_a_node_is_encrypted_and_a_wrong_certificate_keeps_it_from_serving() -> anyhow::Result<()> {
    let folder = Folder::create()?;
    let server = Postgres::start(&folder, "pg").await?;
    let plain = server.create_database("shard", "").await?;
    let tls = authority(&folder, "tls", "localhost")?;
    server.encrypts(&tls.join("https.pem"), &tls.join("https.key")).await?;
    let verified = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        plain.replace("127.0.0.1", "localhost"),
        tls.join("ca.pem").display()
    );
    let config = NodeConfig::write(&folder, "s0", "s0", &verified)?;
    let shard = Shard {
        id: "s0".to_owned(),
        number: 0,
        nodes: vec![config.url()],
        slots: SlotRange::split_evenly(1).collect(),
    };
    config.init(&ShardMap::new(CLUSTER.parse()?, 1, vec![shard])?.to_toml())?;
    let running = Node::start(&config).await?;
    running.execute_until_definite(&node::open("alice", Limit::Unlimited)?).await?;
    running.account("alice").await?;
    let sessions = "SELECT count(*) FILTER (WHERE ssl) || ' of ' || count(*) FROM pg_stat_activity \
                    JOIN pg_stat_ssl USING (pid) WHERE usename = 'shardledger'";
    let encrypted = server.ask("postgres", sessions).await?;
    let (with, all) = encrypted.split_once(" of ").context("no sessions")?;
    // The node has at least the sessions of the lane, the fold and the pool of reads.
    expect!(with == all && all.parse::<u32>()? >= 3, "{encrypted}");
    drop(running);

    // The host is not in the certificate.
    let wrong = NodeConfig::write(&folder, "wrong", "s0", &verified.replace("localhost", "127.0.0.1"))?;
    let said = Node::start_refused(&wrong).await?;
    expect!(said.contains("not valid for name"), "{said}");
    Ok(())
}

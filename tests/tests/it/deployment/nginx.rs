//! Tests of the configuration of nginx, with a real nginx if it is installed. The two routers behind it are sockets of the test.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{node::Folder, wait::until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::Instant,
};

use super::{DEPLOY, run};

const PATIENCE: Duration = Duration::from_secs(20);
/// The answer of a router that works.
const CREATED: &str = "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}";
/// The answer of a router that does not know the outcome of a payment. The body proves that the answer is not nginx's own.
const UNKNOWN: &str = "HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 11\r\n\r\nof a router";

/// The program of nginx. Debian installs it in a folder that is only in root's `PATH`.
async fn program() -> Option<&'static str> {
    for path in ["nginx", "/usr/sbin/nginx"] {
        if run(Command::new(path).arg("-v")).await.is_ok() {
            return Some(path);
        }
    }
    eprintln!("SKIPPED: ops/deploy/nginx/nginx.conf is tested by nginx (Debian: apt-get install nginx-light)");
    None
}

/// The committed configuration with the folders, ports and routers of this test.
fn configuration(scratch: &Folder, listen: &str, routers: [SocketAddr; 2]) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(Path::new(DEPLOY).join("nginx/nginx.conf"))?;
    let folder = scratch.path().to_str().context("the path of the folder is not UTF-8")?;
    let mut text = text.replace("/tmp/nginx", &format!("{folder}/nginx")).replace("/etc/nginx/tls", folder);
    for (name, router) in ["router0:8080", "router1:8080"].into_iter().zip(routers) {
        ensure!(text.contains(name), "{name} is not in nginx.conf");
        text = text.replace(name, &router.to_string());
    }
    ensure!(text.contains("listen 8443 ssl;"), "nginx.conf does not listen on 8443");
    Ok(text.replace("listen 8443 ssl;", &format!("listen {listen};")))
}

#[tokio::test]
async fn nginx_takes_the_configuration() -> anyhow::Result<()> {
    let Some(nginx) = program().await else { return Ok(()) };
    let scratch = Folder::create()?;
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(scratch.path().join("tls.crt"), pair.cert.pem())?;
    std::fs::write(scratch.path().join("tls.key"), pair.signing_key.serialize_pem())?;
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let file = scratch.path().join("nginx.conf");
    let free = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    std::fs::write(&file, configuration(&scratch, &format!("{free} ssl"), [nowhere; 2])?)?;
    let said = run(Command::new(nginx).arg("-t").arg("-c").arg(&file)).await?;
    expect!(!said.contains("[warn]"), "{said}");
    Ok(())
}

/// A fake router. It counts requests, and answers each with the same bytes or closes the connection without an answer.
struct FakeRouter {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl FakeRouter {
    async fn start(answer: Option<&'static str>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, requests) = (listener.local_addr()?, Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&requests);
        #[allow(clippy::disallowed_methods, reason = "the task ends with the test's runtime")]
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                #[allow(clippy::disallowed_methods, reason = "the task ends with the test's runtime")]
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    // nginx sends a request as small as these in one piece.
                    while matches!(socket.read(&mut buffer).await, Ok(1..)) {
                        counter.fetch_add(1, Relaxed);
                        match answer {
                            Some(answer) if socket.write_all(answer.as_bytes()).await.is_ok() => {}
                            _ => return,
                        }
                    }
                });
            }
        });
        Ok(Self { address, requests })
    }

    fn requests(&self) -> usize {
        self.requests.load(Relaxed)
    }
}

/// A running nginx in front of two routers. Dropping it ends nginx.
struct Proxy {
    address: SocketAddr,
    _process: Child,
    _scratch: Folder,
}

impl Proxy {
    async fn start(nginx: &str, routers: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let scratch = Folder::create()?;
        // The port is free until nginx takes it, because this test binds no other port in between.
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let text = configuration(&scratch, &address.to_string(), routers)?;
        let tls: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("ssl_")).collect();
        let file = scratch.path().join("nginx.conf");
        std::fs::write(&file, tls.join("\n"))?;
        let process = Command::new(nginx)
            .args(["-g", "daemon off; master_process off;", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        until("nginx listens", PATIENCE, async || Ok(Some(TcpStream::connect(address).await?))).await?;
        Ok(Self { address, _process: process, _scratch: scratch })
    }

    /// Sends one request on a connection of its own. Returns the status and the body.
    async fn send(&self, method: &str, header: &str) -> anyhow::Result<(u16, String)> {
        let mut socket = TcpStream::connect(self.address).await?;
        let request = format!(
            "{method} /v1/transfers HTTP/1.1\r\nhost: ledger\r\nconnection: close\r\n{header}content-length: 2\r\n\r\n{{}}"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).context("no status")?.parse()?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok((status, body.to_owned()))
    }
}

const KEY: &str = "idempotency-key: payment-1\r\n";

#[tokio::test]
async fn a_payment_without_a_key_is_sent_to_one_router_only_and_its_outcome_is_called_unknown() -> anyhow::Result<()>
{
    let Some(nginx) = program().await else { return Ok(()) };
    for method in ["POST", "PATCH"] {
        let (broken, other) = (FakeRouter::start(None).await?, FakeRouter::start(None).await?);
        let proxy = Proxy::start(nginx, [broken.address, other.address]).await?;
        // A PATCH has no id, so a key would change nothing.
        let (status, body) = proxy.send(method, if method == "PATCH" { KEY } else { "" }).await?;
        let problem: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        expect!(status == 504 && problem["status"] == 504, "{method}: {status} {body}");
        expect!(problem["code"] == "outcome_unknown" && problem["executed"] == "unknown", "{method}: {body}");
        ensure!(broken.requests() + other.requests() == 1, "{method} was sent more than once");
    }
    Ok(())
}

#[tokio::test]
async fn a_payment_with_a_key_is_sent_to_the_other_router() -> anyhow::Result<()> {
    let Some(nginx) = program().await else { return Ok(()) };
    let (broken, well) = (FakeRouter::start(None).await?, FakeRouter::start(Some(CREATED)).await?);
    let proxy = Proxy::start(nginx, [broken.address, well.address]).await?;
    // nginx decides which router it asks first.
    let latest = Instant::now() + PATIENCE;
    while broken.requests() == 0 {
        ensure!(Instant::now() < latest, "nginx never asks the first router");
        let (status, body) = proxy.send("POST", KEY).await?;
        expect!(status == 201, "{status} {body}");
    }
    ensure!(well.requests() > 0, "no request reached the second router");
    Ok(())
}

#[tokio::test]
async fn a_payment_reaches_the_router_that_listens() -> anyhow::Result<()> {
    let Some(nginx) = program().await else { return Ok(()) };
    let well = FakeRouter::start(Some(CREATED)).await?;
    // No program listens on the port of a listener that was dropped.
    let gone = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let proxy = Proxy::start(nginx, [gone, well.address]).await?;
    for _ in 0..4 {
        let (status, body) = proxy.send("POST", "").await?;
        expect!(status == 201, "{status} {body}");
    }
    ensure!(well.requests() == 4, "{} requests", well.requests());
    Ok(())
}

#[tokio::test]
async fn the_answer_of_a_router_is_passed_on_as_it_is() -> anyhow::Result<()> {
    let Some(nginx) = program().await else { return Ok(()) };
    let (one, two) = (FakeRouter::start(Some(UNKNOWN)).await?, FakeRouter::start(Some(UNKNOWN)).await?);
    let proxy = Proxy::start(nginx, [one.address, two.address]).await?;
    for header in ["", KEY] {
        let answer = proxy.send("POST", header).await?;
        expect!(answer == (504, "of a router".to_owned()), "{answer:?}");
    }
    ensure!(one.requests() + two.requests() == 2, "nginx repeated a request that was answered");
    Ok(())
}

//! The routes that every admin listener has: `/livez`, `/metrics`, `/version`. A service merges its own beside them.

use std::{io, time::Duration};

use axum::{Json, Router, http::header, routing::get};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What runs here; [`build_info!`](crate::build_info) fills it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    pub service: &'static str,
    pub version: &'static str,
    /// The commit it was built from, where the build said so in `SHARDLEDGER_COMMIT`; else `unknown`.
    pub commit: &'static str,
}

/// The [`BuildInfo`](crate::admin::BuildInfo) of the crate that calls it.
#[macro_export]
macro_rules! build_info {
    () => {
        $crate::admin::BuildInfo {
            service: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            commit: match option_env!("SHARDLEDGER_COMMIT") {
                Some(commit) => commit,
                None => "unknown",
            },
        }
    };
}

/// How long a request may go on once the listener is to close: a reader that stalls must not hold up the exit.
const CLOSING_GRACE: Duration = Duration::from_secs(1);

/// `/livez` (the process answers, nothing more), `/metrics`, `/version`.
pub fn routes<S>(build: BuildInfo, metrics: Metrics) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    let prometheus_text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/metrics", get(move || std::future::ready((prometheus_text, metrics.render()))))
        .route("/version", get(move || std::future::ready(Json(build))))
}

/// Serves `router` until `closing` is cancelled. To have `/readyz` answer during a drain, cancel it after the drain.
pub async fn serve(listener: TcpListener, router: Router, closing: CancellationToken) -> io::Result<()> {
    let serving = axum::serve(listener, router).with_graceful_shutdown(closing.clone().cancelled_owned());
    let overdue = async {
        closing.cancelled().await;
        tokio::time::sleep(CLOSING_GRACE).await;
    };
    tokio::select! {
        served = serving => served,
        () = overdue => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::Tasks;

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_plain_routes_answer_until_closed() {
        let tasks = Tasks::new();
        let build = build_info!();
        let metrics = crate::metrics::install(&build, &[("shard", "s0")], &tasks).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let closing = CancellationToken::new();
        metrics.observe(|| ::metrics::gauge!("observed_state").set(7.0));
        let served = tasks.spawn("admin", serve(listener, routes(build, metrics), closing.clone()));

        assert!(fetch(address, "/livez").await.ends_with("ok\n"));
        assert!(fetch(address, "/version").await.contains(r#""service":"telemetry""#));
        let metrics = fetch(address, "/metrics").await;
        for part in [
            "text/plain; version=0.0.4",
            "shardledger_build_info{",
            r#"observed_state{shard="s0"} 7"#,
            r#"process_resident_memory_bytes{shard="s0"} "#,
            r#"shardledger_task_panics_total{shard="s0",task="admin"} 0"#,
        ] {
            assert!(metrics.contains(part), "{part} is missing: {metrics}");
        }

        // A connection that never says anything does not hold up the end.
        let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
        closing.cancel();
        served.await.unwrap().unwrap();
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
    }
}

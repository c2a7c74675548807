//! One HTTP/1.1 connection, driven by the task that uses it: no pool, no channel, no second task.

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::exit::Unreachable;

/// A router's address, taken apart once.
#[derive(Debug, Clone)]
pub struct Address {
    authority: String,
    host: String,
    port: u16,
}

impl Address {
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        let authority = uri.authority().with_context(|| format!("{url:?} names no host"))?;
        anyhow::ensure!(uri.scheme_str() == Some("http"), "{url:?}: routers speak plain HTTP");
        let (host, port) = (authority.host().to_owned(), authority.port_u16().unwrap_or(80));
        Ok(Self { authority: authority.to_string(), host, port })
    }
}

pub struct Connection {
    address: Address,
    requests: http1::SendRequest<Full<Bytes>>,
    driver: http1::Connection<TokioIo<TcpStream>, Full<Bytes>>,
}

impl Connection {
    pub async fn open(address: &Address) -> anyhow::Result<Self> {
        let unreachable = |error: std::io::Error| Unreachable {
            what: format!("the router at {}", address.authority),
            reason: error.to_string(),
        };
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let (requests, driver) = http1::handshake(TokioIo::new(stream)).await?;
        Ok(Self { address: address.clone(), requests, driver })
    }

    /// Sends one request and reads the whole answer. After an error the connection is of no more use.
    pub async fn post(&mut self, path: &'static str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::POST, path, body).await
    }

    /// The same without a body.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.address.authority.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let exchange = async {
            self.requests.ready().await?;
            let response = self.requests.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::select! {
            answer = exchange => answer,
            ended = &mut self.driver => {
                ended?;
                anyhow::bail!("the router closed the connection")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn addresses_are_taken_apart() {
        let address = Address::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("127.0.0.1", 8080));
        assert_eq!(Address::parse("http://router").unwrap().port, 80);
        for bad in ["", "127.0.0.1:8080", "https://router", "http://"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}

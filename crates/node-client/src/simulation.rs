//! Connections that a simulation makes in the place of TCP and HTTP/2.

use std::{cell::RefCell, future::Future, pin::Pin, sync::Arc};

use http::{Request, Response};
use tonic::body::Body;

use crate::connection::{BoxError, ConnectError};

/// What [`Network::connect`] and [`Link::call`] return.
pub type Pending<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

/// Makes connections to nodes.
pub trait Network: Send + Sync {
    /// Connects to the node at this address.
    ///
    /// # Errors
    /// If the node is out of reach.
    fn connect(&self, uri: &str) -> Pending<Arc<dyn Link>, ConnectError>;
}

/// One connection to a node.
pub trait Link: Send + Sync {
    fn is_closed(&self) -> bool;

    /// Sends a request. Its failure is [`crate::NotSent`] if the request certainly did not leave the caller.
    fn call(&self, request: Request<Body>) -> Pending<Response<Body>, BoxError>;
}

thread_local! {
    static NETWORK: RefCell<Option<Arc<dyn Network>>> = const { RefCell::new(None) };
}

/// From now on, the connections of this thread are made by `network`; `None`: by TCP.
pub fn install(network: Option<Arc<dyn Network>>) {
    NETWORK.set(network);
}

pub(crate) fn network() -> Option<Arc<dyn Network>> {
    NETWORK.with_borrow(Clone::clone)
}

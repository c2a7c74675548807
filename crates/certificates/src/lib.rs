//! Certificates of this process: read from PEM files at start, and again whenever one of them changes (ADR 17).
//!
//! - [`Certificates`]: the certificate of a router's public listener (HTTPS).
//! - [`Mutual`]: the certificate with which routers and nodes call each other, and which peers it accepts.
//! - [`files`]: reading PEM files, and the names in a certificate; [`reloaded`]: replacing what was made of them while it is in use.
//! - [`network_of`]: what a peer's address counts as where handshakes are bounded.

pub mod files;
mod https;
pub mod mutual;
mod network;
pub mod reloaded;
pub mod stream;

pub use files::CertificateError;
pub use https::{Certificates, TlsConfig};
pub use mutual::{HandshakeError, Mutual, MutualFiles};
pub use network::network_of;
pub use reloaded::CertificateStatus;
pub use stream::Stream;

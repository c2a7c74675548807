//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;

/// Below the range the kernel picks outgoing ports from (32768 up): the port of a process that is down for a moment must
/// not be given to the connection of another program.
const FIRST: u16 = 12_000;
const LAST: u16 = 32_000;
const TRIES: u32 = 200;

/// A port on which no program listens now.
pub fn free() -> anyhow::Result<u16> {
    for _ in 0..TRIES {
        // Tests that start at one moment would find the same first free port, so the search starts anywhere.
        let [.., high, low] = uuid::Uuid::now_v7().into_bytes();
        let port = FIRST + u16::from_be_bytes([high, low]) % (LAST - FIRST);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    None.context("found no free port")
}

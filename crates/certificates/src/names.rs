//! The names in a certificate (its subject alternative names), as texts: DNS names, addresses and URIs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

/// The names of a certificate; empty if it has none or cannot be read.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    x509_parser::parse_x509_certificate(certificate).map(|(_, parsed)| names(&parsed)).unwrap_or_default()
}

/// The names of a certificate that has been parsed.
pub fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| Ipv6Addr::from(bytes).into()));
            address.ok().map(|address: IpAddr| address.to_string())
        }
        _ => None,
    }
}

/// Whether one of the names is allowed. Case does not matter in DNS names; a wildcard in a certificate stands only for itself.
pub fn is_allowed(names: &[String], allowed: &[String]) -> bool {
    names.iter().any(|name| allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)))
}

//! How clients come in: start-up, TLS, login.

mod login;
mod scram;
mod startup;
mod tls;

pub(crate) use login::{Identity, login};
pub use scram::Verifier;
pub(crate) use startup::{Greeted, Startup, greet};
pub use tls::Tls;

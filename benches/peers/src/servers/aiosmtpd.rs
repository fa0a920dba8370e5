//! aiosmtpd, a library: with its own Maildir handler it is a server of thirty lines.

use std::process::Command;

use portreeve_load::ground::output;

use super::{Place, Prepared};

const SERVER: &str = r#"
import asyncio, ssl, sys
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import SMTP, AuthResult

port, cert, key, user, password, folder = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(cert, key)
known = (user.encode(), password.encode())


def authenticate(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == known)


async def main():
    handler = Mailbox(folder)
    make = lambda: SMTP(handler, hostname="mail.bench.test", tls_context=tls, authenticator=authenticate)
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", int(port), backlog=1024)
    await server.serve_forever()


asyncio.run(main())
"#;

pub fn prepare(place: &Place<'_>) -> Result<Prepared, String> {
    let library = place.packages.aiosmtpd()?;
    let script = place.write("server.py", SERVER)?;
    let ask = "import aiosmtpd, sys; print(aiosmtpd.__version__, 'on Python', sys.version.split()[0])";
    let version = output(Command::new("python3").args(["-c", ask]).env("PYTHONPATH", &library))?;
    let mut command = Command::new("python3");
    command.arg(script).arg(place.port.to_string()).arg(&place.cert).arg(&place.key);
    command.args([place.user, place.password]).arg(place.file("mail")).env("PYTHONPATH", library);
    Ok(Prepared {
        name: format!("aiosmtpd {}", version.trim()),
        command,
        ports: [place.port; 2],
        durable: "the Maildir file (fsync), not its folder",
        then: "it is in the Maildir",
        password: "a comparison in clear",
        once_up: None,
    })
}

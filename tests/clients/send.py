"""Sends one message with smtplib: python3 send.py '{"host": …}'. Prints what the server said."""

import json
import smtplib
import ssl
import sys

job = json.loads(sys.argv[1])


class NamedContext:
    """The certificate names mx.demo.test; the test connects to an address of the loopback network."""

    def __init__(self, context):
        self.context = context

    def wrap_socket(self, sock, server_hostname=None, **other):
        return self.context.wrap_socket(sock, server_hostname="mx.demo.test", **other)


context = NamedContext(ssl.create_default_context(cafile=job["certificate"]))
try:
    if job["tls"] == "implicit":
        client = smtplib.SMTP_SSL(job["host"], job["port"], "client.example", timeout=15, context=context)
    else:
        client = smtplib.SMTP(job["host"], job["port"], "client.example", timeout=15)
    client.set_debuglevel(1)
    client.ehlo()
    if job["tls"] == "starttls":
        client.starttls(context=context)
        client.ehlo()
    if job["mechanism"]:
        client.user, client.password = job["user"], job.get("password")
        if "token" in job:
            # As its documentation shows for mechanisms that it does not know: a function of the challenge.
            def method(challenge=None):
                if challenge is not None:
                    print("challenge:", challenge)
                    return "" if job["mechanism"] == "XOAUTH2" else "\x01"
                if job["mechanism"] == "XOAUTH2":
                    return f"user={job['user']}\x01auth=Bearer {job['token']}\x01\x01"
                return f"n,a={job['user']},\x01host=mx.demo.test\x01port={job['port']}\x01auth=Bearer {job['token']}\x01\x01"
        else:
            method = getattr(client, "auth_" + job["mechanism"].lower().replace("-", "_"))
        code, text = client.auth(job["mechanism"], method)
        # smtplib takes a 503 for success, too.
        if code != 235:
            raise smtplib.SMTPAuthenticationError(code, text)
    with open(job["message"], "rb") as message:
        client.sendmail(job["from"], [job["to"]], message.read())
    client.quit()
except (smtplib.SMTPException, OSError) as error:
    print(error)
    sys.exit(1)

#!/usr/bin/env python3
"""Writes computed.json: exchanges whose server side follows from `entropy_hex`, octet for octet.

The exchanges of sasl.json have the server's nonce of their RFC, which no server can be made to choose. Here it
is what our libraries make of the random octets that the host gives to each step, so that a recorded exchange
can be replayed against the real thing. Only the standard library of Python computes here.

Run it and compare: `python3 tests/vectors/computed.py | diff - tests/vectors/computed.json`.
"""
import base64, hashlib, hmac, json

ENTROPY = bytes(range(64))
SERVER, UNIX_MS = "mail.example.com", 1_700_000_000_000
BINDINGS = {"tls-exporter": bytes(range(32)), "tls-server-end-point": hashlib.sha256(b"cert").digest()}


def b64(octets):
    return base64.b64encode(octets).decode()


def lines(first, *rest):
    """Alternating lines in base64; `first` says who begins."""
    sides = "cs" if first == "c" else "sc"
    return [{sides[at % 2]: b64(text.encode())} for at, text in enumerate(rest)]


def common(mech, source, **more):
    facts = {"mech": mech, "source": source, "entropy_hex": ENTROPY.hex(), "server_name": SERVER, "unix_ms": UNIX_MS}
    return facts | more | {"outcome": "success"}


def scram(name, hash_name, user, password, salt, iterations, flag="n", authzid="", extension=""):
    mac = lambda key, text: hmac.new(key, text, hash_name).digest()
    digest = lambda text: hashlib.new(hash_name, text).digest()
    escape = lambda text: text.replace("=", "=3D").replace(",", "=2C")
    header = f"{flag},{'a=' + escape(authzid) if authzid else ''},"
    binding = BINDINGS[flag[2:]] if flag.startswith("p=") else b""
    bare = f"n={escape(user)},r=rOprNGfwEbeRWgbNEkqO{extension}"
    nonce = "rOprNGfwEbeRWgbNEkqO" + b64(ENTROPY[:18])
    server_first = f"r={nonce},s={b64(salt)},i={iterations}"
    without_proof = f"c={b64(header.encode() + binding)},r={nonce}{extension}"
    salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), salt, iterations)
    client_key, server_key = mac(salted, b"Client Key"), mac(salted, b"Server Key")
    stored_key = digest(client_key)
    message = f"{bare},{server_first},{without_proof}".encode()
    proof = bytes(a ^ b for a, b in zip(client_key, mac(stored_key, message)))
    verifier = "v=" + b64(mac(server_key, message))
    return common(
        name, "computed", authcid=user, authzid=authzid, password=password, salt_b64=b64(salt),
        iterations=iterations, channel_binding_b64=b64(binding), stored_key_b64=b64(stored_key),
        server_key_b64=b64(server_key),
        exchange=lines("c", header + bare, server_first, f"{without_proof},p={b64(proof)}", verifier, ""))


def digest_md5(user, realm, password, uri, authzid=""):
    h = lambda octets: hashlib.md5(octets).digest()
    nonce, cnonce = ENTROPY[:16].hex(), "Y2xpZW50bm9uY2U"
    ha1 = h(f"{user}:{realm}:{password}".encode())
    a1 = h(ha1 + f":{nonce}:{cnonce}{':' + authzid if authzid else ''}".encode()).hex()
    value = lambda method: h(f"{a1}:{nonce}:00000001:{cnonce}:auth:{h((method + ':' + uri).encode()).hex()}".encode()).hex()
    challenge = f'realm="{realm}",nonce="{nonce}",qop="auth",algorithm=md5-sess,charset=utf-8'
    response = (f'charset=utf-8,username="{user}",realm="{realm}",nonce="{nonce}",nc=00000001,cnonce="{cnonce}",'
                f'digest-uri="{uri}",response={value("AUTHENTICATE")},qop=auth')
    if authzid:
        response += f',authzid="{authzid}"'
    return common(
        "DIGEST-MD5", "computed", authcid=user, authzid=authzid, realm=realm, password=password, ha1_hex=ha1.hex(),
        exchange=lines("s", challenge, response, "rspauth=" + value(""), ""))


def cram_md5(user, password, context_hex):
    random = base64.b32encode(ENTROPY[:20]).decode().lower()
    challenge = f"<{random}.{UNIX_MS // 1000}@{SERVER}>"
    digest = hmac.new(password.encode(), challenge.encode(), "md5").hexdigest()
    return common("CRAM-MD5", "computed", authcid=user, password=password, context_hex=context_hex,
                  exchange=lines("s", challenge, f"{user} {digest}"))


exchanges = []
for name, hash_name in [("SCRAM-SHA-1", "sha1"), ("SCRAM-SHA-256", "sha256"), ("SCRAM-SHA-512", "sha512")]:
    salt = bytes(range(16))
    exchanges += [
        scram(name, hash_name, "user", "pencil", salt, 4096),
        scram(name, hash_name, "we,ird=user", "p\u00e4ss", salt, 10000, flag="y", authzid="ad=min"),
        scram(name, hash_name, "user", "pencil", bytes(range(64)), 1, extension=",x=y=z"),
        scram(name + "-PLUS", hash_name, "user", "pencil", salt, 4096, flag="p=tls-exporter"),
        scram(name + "-PLUS", hash_name, "user", "pencil", salt, 4096, flag="p=tls-server-end-point", authzid="admin"),
    ]
exchanges += [
    digest_md5("user", "example.com", "pencil", "smtp/mail.example.com"),
    digest_md5("user", "mail.example.com", "pencil", "smtp/mail.example.com/example.com", authzid="admin"),
    cram_md5("tim", "tanstaaftanstaaf", "d06d4e1b26fccaa4b0b61801132340a354b21152711fb604ca3e035e7015116b"),
]
note = "Written by computed.py; in the form of sasl.json, with what the host gives to each step beside it."
print(json.dumps({"note": note, "exchanges": exchanges}, indent=1))

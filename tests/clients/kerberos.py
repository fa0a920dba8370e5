"""The client's side of GSSAPI, a step per line: what a test wants to say between the steps is the test's affair.

    init SERVICE@HOST      a new context; prints its first token
    step BASE64            takes a token of the server; prints the next one, empty when there is none
    wrap BASE64            prints it protected against changes
    unwrap BASE64          prints what the server protected

Each answer is a line of base64, or "!" and why not.
"""

import base64
import sys

import gssapi

context = None
for line in sys.stdin:
    word, _, argument = line.strip().partition(" ")
    try:
        if word == "init":
            name = gssapi.Name(argument, gssapi.NameType.hostbased_service)
            flags = gssapi.RequirementFlag.mutual_authentication | gssapi.RequirementFlag.integrity
            context = gssapi.SecurityContext(name=name, mech=gssapi.MechType.kerberos, usage="initiate", flags=flags)
            answer = context.step()
        elif word == "step":
            answer = context.step(base64.b64decode(argument)) or b""
        elif word == "wrap":
            answer = context.wrap(base64.b64decode(argument), encrypt=False).message
        elif word == "unwrap":
            answer = context.unwrap(base64.b64decode(argument)).message
        else:
            raise ValueError("no such word: " + word)
        print(base64.b64encode(answer).decode(), flush=True)
    except Exception as error:
        print("! " + str(error).replace("\n", " "), flush=True)

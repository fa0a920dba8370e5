// Sends one message with nodemailer: node send.mjs '{"host":…}'. Prints what the server said.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

const require = createRequire(import.meta.url);
const nodemailer = require('nodemailer');
const job = JSON.parse(process.argv[2]);

const transport = nodemailer.createTransport({
  host: job.host,
  port: job.port,
  name: 'client.example',
  secure: job.tls === 'implicit',
  requireTLS: job.tls === 'starttls',
  ignoreTLS: job.tls === 'none',
  // The certificate is self-signed and names mx.demo.test, so that is what it must name.
  tls: { servername: 'mx.demo.test', ca: readFileSync(job.certificate) },
  auth: job.token
    ? { type: 'OAuth2', user: job.user, accessToken: job.token }
    : job.mechanism ? { user: job.user, pass: job.password } : undefined,
  authMethod: job.token ? undefined : job.mechanism ?? undefined,
});

try {
  const sent = await transport.sendMail({
    envelope: { from: job.from, to: [job.to] },
    raw: readFileSync(job.message),
  });
  console.log(sent.response);
} catch (error) {
  console.log(error.response ?? String(error));
  process.exitCode = 1;
}

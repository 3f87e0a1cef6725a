// Node's fetch as it comes. Run as `node ask.mjs URL [stream]`; with `stream` the length of the body is not known before.
const body = '{"model": "tiny", "prompt": "def f(", "max_tokens": 4}'
const [url, stream] = process.argv.slice(2)
const headers = {Authorization: 'Bearer KEY', 'Content-Type': 'application/json'}
const sent = stream ? {body: new Blob([body]).stream(), duplex: 'half'} : {body}
await (await fetch(`${url}/v1/completions`, {method: 'POST', headers, ...sent})).text()

// A service of its own for a test: the built binary over the checkpoint that ships, on a free port, with data that goes with it.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../../", import.meta.url));
const binary = process.env.EVANESCE ?? join(root, "target/release/evanesce");

export class Service {
  static async start({ config = "", data = mkdtempSync(join(tmpdir(), "evanesce-page-")), listen = "127.0.0.1:0" } = {}) {
    const service = new Service();
    service.data = data;
    const file = join(data, "evanesce.toml");
    writeFileSync(file, config);
    service.process = spawn(binary, ["serve", "--config", file, "--data", join(data, "data"), "--listen", listen, "--model", join(root, "models/shapes")], { cwd: root, stdio: ["ignore", "ignore", "pipe"] });
    service.ended = new Promise((resolve) => service.process.once("exit", resolve));
    service.log = "";
    service.url = await new Promise((resolve, reject) => {
      service.process.stderr.on("data", (text) => {
        service.log += text;
        const told = /listening on (http:\/\/\S+)/.exec(service.log);
        if (told) resolve(told[1]);
      });
      service.ended.then(() => reject(new Error(`the service ended: ${service.log}`)));
    });
    return service;
  }

  async call(path, options = {}) {
    const response = await fetch(this.url + path, options);
    const body = await response.json();
    if (!response.ok) throw new Error(body.error.message);
    return body;
  }

  create(asked) {
    return this.call("/v1/videos", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ ...quick, ...asked }) });
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  async stop() {
    this.process.kill("SIGTERM");
    await this.ended;
    rmSync(this.data, { recursive: true, force: true });
  }
}

// A video of a second's work, and one that takes long enough to be watched.
export const quick = { prompt: "a red ball moving to the left on a black background", size: "64x64", num_frames: 9, num_inference_steps: 2, seed: 1 };
export const slow = { ...quick, num_frames: 81, num_inference_steps: 100 };
export const growing = { ...quick, size: "128x128", num_frames: 141, num_inference_steps: 1 };

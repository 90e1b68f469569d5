"""After training: a plain network; branches are fused first. Then safetensors, torch.export and ONNX."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import backpass

torch.manual_seed(0)
x = torch.randn(2, 3, 32, 32)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    )


trained = network()
sgs = backpass.SpatialGradientScaling(trained)
trained(x).mean().backward()
sgs.scale_gradients()
network().load_state_dict(trained.state_dict(), strict=True)  # nothing to convert

branched = backpass.reparam.reparameterize(network(), "acb").eval()
fused = backpass.reparam.fuse(branched).eval()
plain = backpass.reparam.to_plain(branched).eval()
with torch.no_grad():
    print("fused", (fused(x) - branched(x)).abs().max().item())
    print("plain", (plain(x) - branched(x)).abs().max().item())

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "model.safetensors")
    save_file(plain.state_dict(), file)
    loaded = network()
    loaded.load_state_dict(load_file(file), strict=True)
exported = torch.export.export(loaded.eval(), (x,)).module()
with torch.no_grad():
    print("exported", (exported(x) - plain(x)).abs().max().item())

try:
    import onnxruntime
    import onnxscript  # noqa: F401
except ImportError as error:
    print(f"ONNX is left out: {error.name} is not installed; install it with: pip install onnxruntime onnxscript")
else:
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "model.onnx"))
        torch.onnx.export(loaded, (x,), file, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        print("onnx", (torch.from_numpy(output) - plain(x)).abs().max().item())

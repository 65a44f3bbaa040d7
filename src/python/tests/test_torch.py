"""What PyTorch exports, and what it trains on."""

import basisopt
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

CLASSES = 4


class Net(nn.Module):
    """Convolutions with batch normalisation and a shortcut, as anybody writes them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.b(self.a(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = Net()
    # Statistics that are not zero and one.
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(16, 3, 16, 16) * 2 + 1)
    return net.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(160, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 + 1


def export(net, dynamo):
    example = torch.randn(2, 3, 16, 16)
    if dynamo:
        pytest.importorskip("onnxscript", reason="PyTorch exports by it")
        shapes = ({0: torch.export.Dim("batch")},)
        return torch.onnx.export(net, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    import io

    buffer = io.BytesIO()
    try:
        torch.onnx.export(net, (example,), buffer, dynamo=False, dynamic_axes={"x": {0: "batch"}}, input_names=["x"])
    except Exception as e:
        pytest.skip(f"this PyTorch has no exporter through TorchScript: {e}")
    return buffer.getvalue()


@pytest.fixture(scope="module", params=[True, False], ids=["dynamo", "torchscript"])
def exported(net, request):
    return export(net, request.param)


def run(content, images):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def test_exports_fold_and_compute_the_same(net, exported, images):
    result = basisopt.optimize(exported, "@fold")
    onnx.checker.check_model(onnx.load_from_string(result.bytes))
    with torch.no_grad():
        expected = net(images).numpy()
    found = run(result.bytes, images)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert all(n.op_type != "BatchNormalization" for n in onnx.load_from_string(result.bytes).graph.node)


def test_programs_are_onnx_ir_models(net):
    onnx_ir = pytest.importorskip("onnx_ir")
    program = export(net, True)
    by_program = basisopt.optimize(program, "@fold")
    assert isinstance(by_program.model, onnx_ir.Model)
    assert by_program.bytes == basisopt.optimize(program.model, "@fold").bytes
    by_proto = basisopt.optimize(program.model_proto, "@fold")
    assert isinstance(by_proto.model, onnx.ModelProto)
    assert by_proto.report["after"]["macs"] == by_program.report["after"]["macs"]


def test_a_data_loader_works_unchanged(net, exported, images):
    with torch.no_grad():
        labels = net(images).argmax(1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32)
    options = {"budget": "macs=0.6"}
    by_loader = basisopt.compress(exported, loader, **options)
    by_arrays = basisopt.compress(exported, (images.numpy(), labels.numpy()), **options)
    assert by_loader.bytes == by_arrays.bytes
    # The labels are the network's own answers, so it gets all of them right.
    accuracy = by_loader.report["measured"]["accuracy"]
    assert accuracy["before"] == 1.0
    assert by_loader.report["after"]["macs"] <= 0.6 * by_loader.report["before"]["macs"]
    for data in (images, (images, labels), list(images), TensorDataset(images, labels)):
        assert basisopt.compress(exported, data, measure=False, **options).bytes == by_arrays.bytes


def test_loaders_with_workers(net, exported, images):
    labels = torch.zeros(len(images), dtype=torch.int64)
    # Forked workers, after basisopt has run in this process.
    basisopt.optimize(exported, "@fold")
    loader = DataLoader(TensorDataset(images, labels), batch_size=16, num_workers=2)
    result = basisopt.compress(exported, loader, budget="macs=0.6", measure=False)
    assert result.bytes == basisopt.compress(exported, images, budget="macs=0.6", measure=False).bytes


def test_tensors_of_other_kinds(exported, images):
    options = {"budget": "macs=0.6", "measure": False}
    expected = basisopt.compress(exported, images, **options).bytes
    kinds = [
        images.double(),
        images.clone().requires_grad_(),
        images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        [image for image in images],
    ]
    for kind in kinds:
        assert basisopt.compress(exported, kind, **options).bytes == expected
    # bfloat16 is widened, half precision read as it is; both are other numbers.
    for kind in (images.bfloat16(), images.half()):
        report = basisopt.compress(exported, kind, **options).report
        assert report["after"]["macs"] <= 0.6 * report["before"]["macs"]
    with pytest.raises(basisopt.DataError, match="int64"):
        basisopt.compress(exported, images.long(), **options)


def test_training_on_a_loader(net, exported, images):
    with torch.no_grad():
        labels = net(images).argmax(1)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    result = basisopt.compress(exported, loader, budget="macs=0.5", fine_tune="epochs=1:batch=32", measure=False)
    assert result.report["training"]["epochs"]
    assert np.isfinite(run(result.bytes, images)).all()

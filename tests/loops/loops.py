"""The loops that people put around a model. Each trains an adapter on a few batches, one optimizer step a batch.

Most do something in between that must leave no trace: evaluate, look at the base, copy weights in and out.
"""

from __future__ import annotations

import copy
import io
import json
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from superlora_cli.adapter.attach import SuperLora, activate, adapters_of, detach
from tests.loops.work import RATE, Block, Objective, Plain, squares

Trained = tuple[nn.Module, SuperLora]
Run = Callable[[nn.Module, SuperLora, list[Tensor], Objective], Trained]


@dataclass(frozen=True)
class Loop:
    """One of them.

    Attributes:
        make: the base that it needs.
        objective: the loss.
        batch: a batch, None for the usual one.
    """

    run: Run
    make: Callable[[], nn.Module] = Plain
    objective: Objective = squares
    batch: Callable[[torch.Generator], Tensor] | None = None


def adamw(parameters: Iterable[Tensor], **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=RATE, weight_decay=0, **more)


def plain(
    model: nn.Module,
    adapter: SuperLora,
    batches: list[Tensor],
    objective: Objective,
    *,
    call: Callable[..., Any] | None = None,
    before: Callable[[Tensor], object] = lambda batch: None,
    between: Callable[[Tensor], object] = lambda batch: None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Trained:
    """Forward, backward, step; with something before each forward pass, and between it and its backward pass."""
    optimizer = optimizer or adamw(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        before(batch)
        loss = objective(call or model, batch)
        between(batch)
        loss.backward()
        optimizer.step()
    return model, adapter


def looking(model: nn.Module, batch: Tensor) -> None:
    """Everything without gradients: of the adapted model, of the base."""
    with torch.no_grad():
        model(batch)
        activate(model, None)
        model(batch)
        activate(model, "default")
    with torch.inference_mode():
        model(batch)


def evaluating(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    look = partial(looking, model)
    return plain(model, adapter, batches, objective, before=look, between=look)


def keeping(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    def look(batch: Tensor) -> None:
        with adapter.kept():
            looking(model, batch)

    return plain(model, adapter, batches, objective, before=look, between=look)


def accumulating(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    optimizer = adamw(model.parameters())
    for batch in batches:
        with adapter.one_step():
            for half in batch.chunk(2):
                (objective(model, half) / 2).backward()
                looking(model, half)
        optimizer.step()
        optimizer.zero_grad()
    return model, adapter


class ThroughData(torch.optim.AdamW):
    """Writes what autograd does not see, as 8-bit optimizers do."""

    def step(self, closure: Any = None) -> None:
        before = {p: p.data for group in self.param_groups for p in group["params"]}
        for p, value in before.items():
            p.data = value.clone()
        super().step(closure)
        for p, value in before.items():
            value.copy_(p.data)
            p.data = value


def unseen(kind: str) -> Run:
    def run(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = adamw(trained, fused=True) if kind == "fused" else ThroughData(trained, lr=RATE, weight_decay=0)
        look = partial(looking, model)
        return plain(model, adapter, batches, objective, before=look, between=look, optimizer=optimizer)

    return run


def averaging(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """An average is copied in for evaluation, and the weights back, through `.data` (diffusers' EMAModel)."""
    average = {name: 0.5 * factor.detach() for name, factor in adapter.factors.items()}

    def look(batch: Tensor) -> None:
        own = {name: factor.detach().clone() for name, factor in adapter.factors.items()}
        for values in (average, own):
            for name, factor in adapter.factors.items():
                factor.data.copy_(values[name])
            looking(model, batch)

    return plain(model, adapter, batches, objective, before=look)


class Checkpointed(Plain):
    """Each block, and the last one's two halves, are computed again in the backward pass, in training."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        first, second = self._modules["0"], self._modules["1"]
        x = checkpoint(first, x.requires_grad_(), use_reentrant=self.reentrant)
        inner = checkpoint(lambda y: torch.tanh(second.qkv(y)), x, use_reentrant=self.reentrant)
        return x + checkpoint(second.proj, inner, use_reentrant=self.reentrant)


def as_a_whole(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """The call of the adapted model is itself computed again."""
    look, trained = partial(looking, model), (model, adapter)
    for reentrant, batch in zip((False, True, False), batches, strict=True):
        optimizer = optimizer_of(trained)
        call = partial(checkpoint, model, use_reentrant=reentrant)
        plain(model, adapter, [batch.requires_grad_()], objective, call=call, between=look, optimizer=optimizer)
    return trained


_OPTIMIZERS: dict[int, tuple[SuperLora, torch.optim.Optimizer]] = {}


def optimizer_of(trained: Trained) -> torch.optim.Optimizer:
    """One that outlives a part of a loop."""
    model, adapter = trained
    if id(adapter) not in _OPTIMIZERS:
        _OPTIMIZERS.clear()
        _OPTIMIZERS[id(adapter)] = adapter, adamw(model.parameters())
    return _OPTIMIZERS[id(adapter)][1]


def in_parts(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """The adapted model's blocks are called, never the model; every other is checkpointed."""

    def call(batch: Tensor) -> Tensor:
        x: Tensor = model._modules["0"](batch)
        y: Tensor = checkpoint(model._modules["1"], x, use_reentrant=False)
        return y

    look = partial(looking, model)
    return plain(model, adapter, batches, objective, call=call, before=look, between=look)


def penalised(model: Callable[..., Tensor], batch: Tensor) -> Tensor:
    """A loss with the norm of a gradient in it: second derivatives."""
    batch = batch.detach().requires_grad_()
    output = model(batch)
    (slope,) = torch.autograd.grad(output.square().sum(), batch, create_graph=True)
    return output.square().mean() + slope.square().mean()


def functional(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """Per-sample gradients with torch.func, and a directional derivative that nobody uses."""
    optimizer, prefix = adamw(model.parameters()), "superlora.factors."

    def loss(params: dict[str, Tensor], one: Tensor) -> Tensor:
        return objective(partial(functional_call, model, params), one[None])

    def call(params: dict[str, Tensor], batch: Tensor) -> Tensor:
        return functional_call(model, params, (batch,))

    for batch in batches:
        params = {prefix + name: factor.detach() for name, factor in adapter.factors.items()}
        single = vmap(grad(loss), (None, 0))(params, batch)
        torch.testing.assert_close(vmap(model)(batch), model(batch))
        along = {name: torch.ones_like(value) for name, value in params.items()}
        _, tangent = jvp(lambda p, batch=batch: call(p, batch), (params,), (along,))
        ends = [call({n: v + sign * 1e-6 for n, v in params.items()}, batch) for sign in (1, -1)]
        torch.testing.assert_close(tangent, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)
        for name, factor in adapter.factors.items():
            factor.grad = single[prefix + name].mean(0)
        optimizer.step()
    return model, adapter


def compiled(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    torch._dynamo.reset()
    call = torch.compile(model, backend="aot_eager")

    def look(batch: Tensor) -> None:
        with torch.no_grad():
            call(batch)

    return plain(model, adapter, batches, objective, call=call, before=look, between=look)


def exporting(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """An export before every step gives what the model gives, and leaves it alone."""

    def look(batch: Tensor) -> None:
        exported = torch.export.export(model, (batch,)).module()
        with torch.no_grad():
            torch.testing.assert_close(exported(batch), model(batch))

    return plain(model, adapter, batches, objective, before=look)


def copying(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """A copy is trained further, then what was pickled of it, while a forward pass of the first is still open."""
    plain(model, adapter, batches[:1], objective, optimizer=optimizer_of((model, adapter)))
    state = optimizer_of((model, adapter)).state_dict()
    for number, batch in enumerate(batches[1:]):
        objective(model, batch)
        if number:
            stream = io.BytesIO()
            torch.save(model, stream)
            stream.seek(0)
            model = torch.load(stream, weights_only=False)
        else:
            model = copy.deepcopy(model)
        held = adapters_of(model)
        assert held is not None
        adapter = held.get()
        optimizer = adamw(model.parameters())
        optimizer.load_state_dict(state)
        plain(model, adapter, [batch], objective, optimizer=optimizer)
        state = optimizer.state_dict()
    return model, adapter


def switching(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """With torch's defaults changed, after an evaluation that was interrupted."""

    class Stop(BaseException):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    def look(batch: Tensor) -> None:
        handle = model._modules["1"].register_forward_pre_hook(stop)
        try:
            model(batch)
        except Stop:
            handle.remove()
        assert adapter.current() is not adapter.current()  # nothing of that call is left

    torch.set_default_dtype(torch.float16)
    torch.set_default_device("meta")
    try:
        return plain(model, adapter, batches, objective, before=look, between=look)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def threaded(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """Another thread infers all the while."""
    done, failed = threading.Event(), []

    def infer() -> None:
        try:
            while not done.is_set():
                with torch.no_grad():
                    model(batches[0])
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    try:
        optimizer = adamw(model.parameters())
        for batch in batches:
            with adapter.one_step():
                objective(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        done.set()
        thread.join()
    if failed:
        raise failed[0]
    return model, adapter


def distributed(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return plain(model, adapter, batches, objective, call=DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()


class WithStatistics(nn.Sequential):
    """Normalised by running statistics that are not those of the batches."""

    patterns = Plain.patterns

    def __init__(self) -> None:
        super().__init__(Block(), nn.BatchNorm1d(3), Block(), nn.InstanceNorm1d(3, track_running_stats=True))
        for module in self.children():
            if isinstance(module, nn.BatchNorm1d | nn.InstanceNorm1d):
                module.running_mean.fill_(0.3)
                module.running_var.fill_(1.7)


def in_training_mode(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    def look(batch: Tensor) -> None:
        model.eval()
        looking(model, batch)
        model.train()
        looking(model, batch)

    return plain(model, adapter, batches, objective, before=look)


def accelerated(model: nn.Module, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, adamw(model.parameters()))
    for batch in batches:
        optimizer.zero_grad()
        loss = objective(prepared, batch)
        looking(model, batch)
        accelerator.backward(loss)
        optimizer.step()
    return accelerator.unwrap_model(prepared), adapter


class Tiny(nn.Module):
    """A small Llama of transformers."""

    patterns = ("q", "v")

    def __new__(cls) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
        )
        model = LlamaForCausalLM(config)
        model.patterns = cls.patterns
        return model


def words(generator: torch.Generator) -> Tensor:
    return torch.randint(20, (4, 5), generator=generator)


def hugging_face(model: Any, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """transformers' Trainer with its own optimizer, fused AdamW, gradient checkpointing, an evaluation every step."""
    from transformers import Trainer, TrainingArguments

    class Own(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            loss = objective(model, inputs["input_ids"])
            return (loss, {"loss": loss}) if return_outputs else loss

        def get_train_dataloader(self) -> Any:
            return [{"input_ids": batch} for batch in batches]

        def get_eval_dataloader(self, *_: Any) -> Any:
            return self.get_train_dataloader()

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            looking(self.model, batches[0])
            return {}

    with tempfile.TemporaryDirectory() as folder:
        asked = TrainingArguments(
            folder, max_steps=len(batches), learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0,
            optim="adamw_torch_fused", gradient_checkpointing=True, eval_strategy="steps", eval_steps=1,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        data = [{"input_ids": batch} for batch in batches]
        Own(model, asked, train_dataset=data, eval_dataset=data).train()
    model.gradient_checkpointing_disable()
    return model, adapter


def reinforcing(model: Any, adapter: SuperLora, batches: list[Tensor], objective: Objective) -> Trained:
    """PEFT's plugin: the policy's forward pass, one of the reference, backward; checkpointed of both kinds."""
    from peft import get_peft_model

    from superlora_cli.peft_plugin import SuperLoraConfig

    start, knobs = adapter.state_dict(), json.loads(adapter.config.to_json())
    detach(model)
    policy = get_peft_model(model.float(), SuperLoraConfig(target_modules=["q_proj", "v_proj"], **knobs)).double()
    adapter = model.superlora.get()
    adapter.load_state_dict(start)
    optimizer = adamw(policy.parameters())
    policy.train()
    policy.enable_input_require_grads()
    for reentrant, batch in zip((False, True, False), batches, strict=True):
        policy.gradient_checkpointing_enable({"use_reentrant": reentrant})

        def look(batch: Tensor) -> None:
            with torch.no_grad(), policy.disable_adapter():
                policy(batch)
            with torch.no_grad():
                policy(batch)

        plain(policy, adapter, [batch], objective, between=look, optimizer=optimizer)
    model.gradient_checkpointing_disable()
    return model, adapter


LOOPS: dict[str, Loop] = {
    "plain": Loop(plain),
    "evaluation before and after every forward pass": Loop(evaluating),
    "the same, ΔW kept": Loop(keeping),
    "accumulation in one_step, evaluation inside": Loop(accumulating),
    "fused AdamW": Loop(unseen("fused")),
    "an optimizer that writes through .data": Loop(unseen("data")),
    "an average copied in and out": Loop(averaging),
    "checkpointing": Loop(evaluating, make=partial(Checkpointed, reentrant=False)),
    "checkpointing, reentrant": Loop(evaluating, make=partial(Checkpointed, reentrant=True)),
    "checkpointing in one_step": Loop(accumulating, make=partial(Checkpointed, reentrant=False)),
    "checkpointing in one_step, reentrant": Loop(accumulating, make=partial(Checkpointed, reentrant=True)),
    "checkpointing of the whole model": Loop(as_a_whole),
    "blocks called one by one": Loop(in_parts),
    "a gradient's norm in the loss": Loop(plain, objective=penalised),
    "torch.func: grad, vmap, jvp": Loop(functional),
    "torch.compile": Loop(compiled),
    "torch.export before every step": Loop(exporting),
    "deepcopy and pickle in between": Loop(copying),
    "other defaults of torch, interrupted calls": Loop(switching),
    "another thread that infers": Loop(threaded),
    "DistributedDataParallel": Loop(distributed),
    "running statistics, training mode": Loop(in_training_mode, make=WithStatistics),
    "Accelerate": Loop(accelerated),
    "transformers' Trainer": Loop(hugging_face, make=Tiny, batch=words),
    "PEFT: policy, reference, backward": Loop(reinforcing, make=Tiny, batch=words),
}

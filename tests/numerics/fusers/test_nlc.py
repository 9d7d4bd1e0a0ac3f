import dataclasses

import pytest
import torch

from clipray.numerics.fusers import lone_gate, nlc
from clipray.numerics.fusers.nlc import Gate
from clipray.numerics.solvers.adam import Adam, shuffled
from tests.numerics.made import problem, support


@pytest.mark.parametrize("rates", [0.05, (0.05, 0.01, 0.05)])
@pytest.mark.parametrize("decay", ["l2", "decoupled"])
def test_adam_on_stacked_problems_equals_torch_optim_on_each(decay, rates):
    g = torch.Generator().manual_seed(0)
    start, target = torch.randn(3, 4, 2, generator=g), torch.randn(3, 4, 2, generator=g)
    ours = start.clone()
    adam = Adam([ours], rates, 0.1, decay)
    for _ in range(30):
        gradient = 4 * (ours - target) ** 3
        adam.step(
            [gradient.transpose(1, 2).contiguous().transpose(1, 2)]
        )  # as autograd gives them: any strides
    kind = torch.optim.Adam if decay == "l2" else torch.optim.AdamW
    for s in range(3):
        theirs = start[s].clone().requires_grad_(True)
        rate = rates if isinstance(rates, float) else rates[s]
        optimiser = kind([theirs], lr=rate, weight_decay=0.1)
        for _ in range(30):
            optimiser.zero_grad()
            ((theirs - target[s]) ** 4).sum().backward()
            optimiser.step()
        torch.testing.assert_close(ours[s], theirs.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("weight_map", ["linear", "softplus", "exp", "softmax"])
@pytest.mark.parametrize("init", ["torch", "mean"])
def test_equals_a_plain_torch_module_trained_by_torch_optim(weight_map, init):
    settings = Gate(weight_map=weight_map, init=init, rate=1e-3, epochs=6, batch=5, max_steps=0)
    s = support(seed=4, images=12)
    x = torch.cat([torch.nn.functional.normalize(e, dim=1) for e in s.embeddings], 1)
    first, last = torch.nn.Linear(x.shape[1], 128), torch.nn.Linear(128, 3)
    w1, b1, w2, b2 = nlc.initial(x.shape[1], 3, settings, seed=4)
    with torch.no_grad():
        for p, v in zip(
            (first.weight, first.bias, last.weight, last.bias), (w1.T, b1, w2.T, b2), strict=True
        ):
            p.copy_(v)
    maps = {
        "linear": torch.nn.Identity(),
        "softplus": torch.nn.Softplus(),
        "exp": torch.exp,
        "softmax": torch.nn.Softmax(1),
    }

    def forward(rows):
        return torch.einsum(
            "nm,nmc->nc", maps[weight_map](last(torch.relu(first(x[rows])))), s.logits_KMC[rows]
        )

    optimiser = torch.optim.Adam(
        [*first.parameters(), *last.parameters()], lr=1e-3, weight_decay=0.01
    )
    for rows in shuffled(12, [4], 5, 6, 0):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(forward(rows[0]), s.labels_K[rows[0]]).backward()
        optimiser.step()
    state = nlc.fit([support(seed=3, images=12), s], settings)[1]
    theirs = torch.log_softmax(forward(torch.arange(12)), 1).detach()
    torch.testing.assert_close(
        nlc.apply(state, s.logits_KMC, s.embeddings), theirs, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("weight_map", ["linear", "softplus", "exp", "softmax"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("hidden", [0, 6])
def test_the_gradient_over_one_backbone_is_the_one_that_pytorch_finds(
    weight_map, activation, hidden
):
    how = Gate(hidden=hidden, weight_map=weight_map, activation=activation, init="torch")
    supports = [support(seed=seed, images=9, dims=(5,)) for seed in range(2)]
    x, z = (
        torch.stack(part).double()
        for part in ([s.embeddings[0] for s in supports], [s.logits_KMC for s in supports])
    )
    y = torch.stack([s.labels_K for s in supports])
    starts = [nlc.initial(5, 1, how, seed) for seed in range(2)]
    leaves = [torch.stack(p).double().requires_grad_(True) for p in zip(*starts, strict=True)]
    fused = nlc.fuse(nlc.weights(leaves, x, how), z, "logits")
    loss = torch.nn.functional.nll_loss(fused.flatten(0, 1), y.flatten(), reduction="sum") / 9
    plain = [leaf.detach() for leaf in leaves]
    ours = lone_gate.gradient(plain, x, z[:, :, 0], y, how)
    for mine, theirs in zip(ours, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("weight_map", ["linear", "softplus", "exp", "softmax"])
def test_untrained_from_the_mean_it_is_the_mean_of_the_logits(weight_map):
    z, embeddings, _ = problem()
    state = nlc.fit([support()], Gate(weight_map=weight_map, epochs=0))[0]
    torch.testing.assert_close(nlc.apply(state, z, embeddings), torch.log_softmax(z.mean(1), 1))


def test_positive_maps_cannot_lift_a_class_that_a_rival_beats_everywhere_and_the_linear_one_can():
    z, embeddings, _ = problem(seed=5)
    lost = (
        (z[:, :, :, None] < z[:, :, None, :]).all(1).any(2)
    )  # N×C: some rival is above in every backbone
    for weight_map in ("softplus", "exp", "softmax"):
        state = nlc.fit([support()], Gate(weight_map=weight_map, rate=0.05, epochs=60))[0]
        chosen = nlc.apply(state, z, embeddings).argmax(1)
        assert not lost[torch.arange(len(z)), chosen].any()
    state = nlc.fit([support()], Gate(rate=0.05, epochs=60))[0]
    assert lost[torch.arange(len(z)), nlc.apply(state, -z, embeddings).argmax(1)].any()


def test_every_image_is_visited_once_an_epoch():
    batches = shuffled(10, [1, 2], 4, 3, 0)
    assert [b.shape for b in batches] == [(2, 4), (2, 4), (2, 2)] * 3
    for epoch in range(3):
        whole = torch.cat(batches[3 * epoch : 3 * epoch + 3], 1)
        assert torch.equal(whole.sort(1).values, torch.arange(10).expand(2, -1))
    assert len(shuffled(10, [1], 4, 100, 7)) == 7


@pytest.mark.parametrize("batch", [0, 3])
def test_the_parts_of_a_training_are_shorter_trainings(batch):
    supports = [support(images=images, seed=seed) for images, seed in ((8, 0), (8, 1), (5, 2))]
    settings = Gate(hidden=4, epochs=12, batch=batch, max_steps=12)
    for part, states in enumerate(nlc.path(supports, [settings] * len(supports), 3)):
        shorter = dataclasses.replace(settings, max_steps=4 * (part + 1))
        for state, expected in zip(states, nlc.fit(supports, shorter), strict=True):
            assert all(
                torch.equal(state.tensors[name], tensor)
                for name, tensor in expected.tensors.items()
            )
    assert part == 2
    assert list(nlc.path([], [], 3)) == [] == nlc.fit([], settings)


def test_trainings_with_settings_of_their_own_equal_trainings_alone():
    every = [
        Gate(hidden=4, epochs=5),
        Gate(hidden=4, epochs=5, rate=0.1),
        Gate(hidden=4, epochs=5, rate=0.1, weight_decay=0.5, init="torch", normalise_inputs=False),
        Gate(hidden=0, epochs=5),
        Gate(hidden=4, epochs=5, weight_map="softplus"),
    ]
    supports = [support(seed=1)] * len(every)
    (together,) = nlc.path(supports, every, 1)
    for settings, state in zip(every, together, strict=True):
        (alone,) = nlc.fit(supports[:1], settings)
        assert state.settings == settings
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(state.tensors[name], tensor)


def test_networks_are_the_same_in_groups_of_any_size(monkeypatch):
    supports = [support(seed=seed, images=20, dims=(6,)) for seed in range(5)]
    at_once = nlc.fit(supports, Gate(max_steps=20))
    monkeypatch.setattr(nlc, "_CACHED", 1)
    monkeypatch.setattr(nlc, "_FEWEST", 2)
    for state, other in zip(nlc.fit(supports, Gate(max_steps=20)), at_once, strict=True):
        for name, tensor in state.tensors.items():
            torch.testing.assert_close(tensor, other.tensors[name])

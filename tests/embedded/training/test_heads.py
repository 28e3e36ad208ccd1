import numpy as np
import pytest
import torch
from torch import nn

from runner.embedded import world
from runner.embedded.training.heads import Asked, Drawn, cells, places, words_said


def test_a_head_asks_the_tokens_that_leave_its_block_while_it_is_trained() -> None:
    block = nn.Identity()
    asked = Asked(5, (10, 4, 4), block)
    block(torch.eye(5)[:, None].expand(5, 16, 5).flatten(0, 1)[None])  # each says which frame it is of
    with torch.no_grad():
        asked.bias.zero_()
        asked.weight[:10, :5] = 50 * torch.eye(10)[:, :5]
        assert float(asked.loss(places(5, 4, 4))) == pytest.approx(2 * np.log(4), abs=1e-3)
        assert float(asked.loss(places(5, 4, 4).flip(1))) > 10
    asked.eval()
    block(torch.zeros(1, 80, 5))
    with pytest.raises(AssertionError):
        asked.loss(places(5, 4, 4))


def test_of_two_streams_the_pictures_is_asked() -> None:
    class Two(nn.Module):
        def forward(self, text: torch.Tensor, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return text, picture

    block = Two()
    drawn = Drawn(3, block)
    block(torch.zeros(1, 2, 3), torch.ones(1, 16, 3))
    assert drawn.answers().shape == (1, 16, 16)


def test_words_are_told_by_their_kinds() -> None:
    said = words_said("seen", world.PLACES)
    first = world.combinations("seen", world.PLACES)[17]
    assert (world.SHAPES[said[17, 0]], world.COLORS[said[17, 1]], world.PLACES[said[17, 2]]) == first


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (17, 5), (34, 10)])
def test_cells_are_where_the_shape_is(frames: int, latents: int) -> None:
    scene = world.scene(world.parse("a red square standing still"), np.random.default_rng(0))
    covered = cells(scene, frames).float() / 255
    assert covered.shape == (latents * 16, 16)
    picture = covered.view(latents, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(latents, 16, 16)
    share = world.coverage("square", [scene.start[0]], [scene.start[1]], [scene.radius[0]])[0]
    expected = torch.from_numpy(share.reshape(16, 4, 16, 4).mean((1, 3)))
    for each in picture:
        torch.testing.assert_close(each, expected, atol=0.003, rtol=0)

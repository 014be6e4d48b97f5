"""Small versions of KerasHub's models are packed, trained on two tasks, saved, loaded and exported."""

import keras
import numpy as np
import pytest

import tf_packnet as tp

hub = pytest.importorskip("keras_hub", reason="KerasHub is not installed: pip install tf_packnet[hub]")
models = hub.models

TEXT = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
GROUPED = {**TEXT, "num_query_heads": 2, "num_key_value_heads": 1}
LENGTH = 12
IMAGE = (32, 32, 3)
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
}

MIT = {
    "layerwise_depths": [1, 1],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_patch_sizes": [3, 3],
    "layerwise_sr_ratios": [1, 1],
    "layerwise_strides": [2, 2],
    "hidden_dims": [8, 16],
    "image_shape": (32, 32, 3),
}


def bert():
    backbone = models.BertBackbone(**{**TEXT, "num_layers": 1}, num_heads=2, max_sequence_length=LENGTH)
    return models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)


def gpt2():
    backbone = models.GPT2Backbone(**{**TEXT, "num_layers": 1}, num_heads=2, max_sequence_length=LENGTH)
    return models.GPT2CausalLM(backbone, preprocessor=None)


def gemma():
    return models.GemmaCausalLM(models.GemmaBackbone(**GROUPED, head_dim=4), preprocessor=None)


def vit():
    backbone = models.ViTBackbone((16, 16, 3), patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
    return models.ViTImageClassifier(backbone, num_classes=2, preprocessor=None)


def resnet():
    backbone = models.ResNetBackbone(**RESNET, image_shape=(16, 16, 3))
    return models.ResNetImageClassifier(backbone, num_classes=2, preprocessor=None)


def segformer():
    encoder = models.MiTBackbone(**MIT, max_drop_path_rate=0.0)
    backbone = models.SegFormerBackbone(image_encoder=encoder, projection_filters=8)
    return models.SegFormerImageSegmenter(backbone=backbone, num_classes=2, preprocessor=None)


def deeplab():
    encoder = models.ResNetBackbone(**RESNET, image_shape=IMAGE)
    backbone = models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P3",
        low_level_feature_key="P2",
        upsampling_size=2,
        dilation_rates=[1, 2],
        projection_filters=8,
        image_shape=IMAGE,
    )
    return models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=2, preprocessor=None)


def examples(model, seed):
    """Random inputs, and labels for every position, pixel or example."""
    rng = np.random.default_rng(seed)

    def values(spec):
        shape = (16, *(size or LENGTH for size in spec.shape[1:]))
        if "token" in spec.name:
            return rng.integers(1, 50, shape).astype("int32")
        if "int" in spec.dtype:
            return np.full(shape, "mask" in spec.name, "int32")
        return rng.normal(size=shape).astype("float32")

    inputs = keras.tree.map_structure(values, model.input)
    *shape, classes = (size or LENGTH for size in model.output_shape[1:])
    return inputs, rng.integers(0, classes, (16, *shape))


def learn(packed, task, seed):
    packed.begin_task(task)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    # XLA would take most of the time.
    packed.compile(optimizer=optimizer, loss=loss, metrics=["sparse_categorical_accuracy"], jit_compile=False)
    prune = [tp.PruneRoundScheduler(tp.EqualShare(0.5, 2)), tp.GradientMask(), tp.TaskMaskSnapshot()]
    packed.fit(*examples(packed, seed), batch_size=8, verbose=0, callbacks=prune)


def two_tasks(model, head, file):
    """Return a pack with tasks a and b, saved to `file` and loaded between them, inputs, and the outputs of task a."""
    x, _ = examples(model, 0)
    packed = tp.pack(model, head=head)
    np.testing.assert_array_equal(packed.predict(x, verbose=0), model.predict(x, verbose=0))
    learn(packed, "a", 1)
    expected = packed.predict(x, verbose=0)
    packed.save(file)
    packed = keras.models.load_model(file)
    learn(packed, "b", 2)
    return packed, x, expected


@pytest.mark.filterwarnings("ignore:.*compile\\(\\)` was not called as part of model loading")
@pytest.mark.parametrize(
    ("make", "head"),
    [
        pytest.param(bert, "per_task", marks=pytest.mark.slow),
        pytest.param(gpt2, "shared", marks=pytest.mark.slow),
        pytest.param(gemma, "shared", marks=pytest.mark.slow),
        pytest.param(vit, "per_task", marks=pytest.mark.slow),
        pytest.param(resnet, "per_task", marks=pytest.mark.slow),
        pytest.param(segformer, "per_task", marks=pytest.mark.slow),
        pytest.param(deeplab, "per_task", marks=pytest.mark.slow),
    ],
)
def test_two_tasks_with_a_reload_between_them(make, head, tmp_path):
    keras.utils.set_random_seed(1)
    model = make()
    packed, x, expected = two_tasks(model, head, tmp_path / "a.keras")
    assert not np.array_equal(packed.predict(x, verbose=0), expected)
    packed.save(tmp_path / "ab.keras")
    tp.save_pack(packed, tmp_path / "ab.packnet")
    for each in (packed, keras.models.load_model(tmp_path / "ab.keras"), tp.load_pack(tmp_path / "ab.packnet")):
        each.select_task("a")
        np.testing.assert_array_equal(each.predict(x, verbose=0), expected)
        assert type(each.backbone) is type(model.backbone)
    tp.export_task(packed, "a", tmp_path / "a")
    served = tp.load_task(tmp_path / "ab.packnet", "a").predict(x, verbose=0)
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*compile\\(\\)` was not called as part of model loading")
@pytest.mark.parametrize("make", [gpt2, pytest.param(gemma, marks=pytest.mark.slow)])
def test_text_is_generated_as_the_selected_task(make, tmp_path):
    keras.utils.set_random_seed(1)
    packed = tp.pack(make(), head="shared")
    for seed, task in enumerate("ab"):
        learn(packed, task, seed)
    packed.save(tmp_path / "pack.keras")
    loaded = keras.models.load_model(tmp_path / "pack.keras")
    tokens = examples(packed, 3)[0]["token_ids"]
    prompt = {"token_ids": tokens, "padding_mask": np.zeros_like(tokens)}
    prompt["padding_mask"][:, :3] = 1
    generated = {}
    for task in "ab":
        expected = tokens.copy()
        packed.select_task(task)
        for position in range(3, LENGTH):  # greedily, one token after another
            mask = np.tile(np.arange(LENGTH) < position, (len(tokens), 1)).astype("int32")
            logits = packed.predict({"token_ids": expected, "padding_mask": mask}, verbose=0)
            expected[:, position] = logits[:, position - 1].argmax(axis=-1)
        for model in (packed, loaded):
            model.select_task(task)
            model.compile(sampler="greedy")
            generated[task] = np.asarray(model.generate(prompt, stop_token_ids=None)["token_ids"])
            np.testing.assert_array_equal(generated[task], expected)
    assert not np.array_equal(generated["a"], generated["b"])


BACKBONES = {
    "Albert": lambda: models.AlbertBackbone(
        50, num_layers=2, num_heads=2, embedding_dim=8, hidden_dim=8, intermediate_dim=16, max_sequence_length=LENGTH
    ),
    "Bart": lambda: models.BartBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "Bert": lambda: models.BertBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "Bloom": lambda: models.BloomBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "CLIPVisionEncoder": lambda: models.CLIPVisionEncoder(8, 8, 2, 2, 16, image_shape=IMAGE),
    "CSPNet": lambda: models.CSPNetBackbone(
        8, 3, 1, [1, 1], [1, 2], [8, 8], block_type="dark_block", stage_type="dark", image_shape=IMAGE
    ),
    "DINOV2": lambda: models.DINOV2Backbone(4, 2, 8, 2, 16, image_shape=(16, 16, 3)),
    "DebertaV3": lambda: models.DebertaV3Backbone(**TEXT, num_heads=2, max_sequence_length=LENGTH, bucket_size=4),
    "DeiT": lambda: models.DeiTBackbone((16, 16, 3), 4, 2, 2, 8, 16),
    "DenseNet": lambda: models.DenseNetBackbone([1, 1], image_shape=IMAGE),
    "DistilBert": lambda: models.DistilBertBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "FNet": lambda: models.FNetBackbone(**TEXT, max_sequence_length=LENGTH),
    "Falcon": lambda: models.FalconBackbone(50, 2, 2, 8, 16),
    "GPT2": lambda: models.GPT2Backbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "GPTNeoX": lambda: models.GPTNeoXBackbone(50, 2, 2, 32, 16, max_sequence_length=LENGTH),
    "Gemma": lambda: models.GemmaBackbone(**GROUPED, head_dim=4),
    "Gemma3": lambda: models.Gemma3Backbone(**GROUPED, head_dim=4, image_size=16, vision_encoder=None),
    "Llama": lambda: models.LlamaBackbone(**GROUPED),
    "MiT": lambda: models.MiTBackbone(**MIT, max_drop_path_rate=0.1),
    "Mistral": lambda: models.MistralBackbone(**GROUPED),
    "MobileNet": lambda: models.MobileNetBackbone(
        [[8], [8]],
        [1, 1],
        [[8], [8]],
        [[3], [3]],
        [[2], [1]],
        [[0.25], [None]],
        [["relu"], ["relu"]],
        [[1], [1]],
        output_num_filters=8,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=False,
        last_layer_filter=8,
        squeeze_and_excite=0.5,
        image_shape=IMAGE,
    ),
    "OPT": lambda: models.OPTBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "Phi3": lambda: models.Phi3Backbone(**GROUPED),
    "Qwen": lambda: models.QwenBackbone(**GROUPED),
    "ResNet": lambda: models.ResNetBackbone(**RESNET, image_shape=IMAGE),
    "Roberta": lambda: models.RobertaBackbone(**TEXT, num_heads=2, max_sequence_length=LENGTH),
    "Swin": lambda: models.SwinTransformerBackbone(
        image_shape=IMAGE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "T5": lambda: models.T5Backbone(**TEXT, num_heads=2),
    "VGG": lambda: models.VGGBackbone([1, 1], [8, 8], image_shape=IMAGE),
    "ViT": lambda: models.ViTBackbone((16, 16, 3), 4, 2, 2, 8, 16),
    "ViTDet": lambda: models.ViTDetBackbone(8, 2, 16, 2, [0], IMAGE, 8, 8, window_size=2),
    "Xception": lambda: models.XceptionBackbone([[8, 8], [8, 8]], [True, False], image_shape=IMAGE),
}
# Their configs lack arguments or contain other values, or their layers keep what cannot be saved or replaced.
REFUSED = {
    "DINOV2": "'embeddings' is a DINOV2Embedding whose save_own_variables, load_own_variables would not be called",
    "DeiT": "'deit_encoder' is a DeiTEncoder whose get_config\\(\\) fails",
    "Llama": "'transformer_layer_0' is a LlamaTransformerDecoder whose get_config\\(\\) fails",
    "MiT": "'hierarchical_encoder_1_0' is a HierarchicalTransformerEncoder that cannot be created from its get_config",
    "MobileNet": "'block_0_0' is a DepthwiseConvBlock whose copy is named 'block_0_0_0'",
    "Swin": "'patch_embedding' is a PatchEmbedding whose get_config\\(\\) fails",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_packs_or_is_refused(name, tmp_path):
    backbone = BACKBONES[name]()
    output = keras.tree.flatten(backbone.output)[0]
    model = keras.Model(
        backbone.input,
        keras.layers.Dense(2)(
            keras.layers.GlobalAveragePooling1D()(keras.layers.Reshape((-1, output.shape[-1]))(output))
        ),
    )
    if name in REFUSED:
        with pytest.raises(tp.ArgumentError, match=REFUSED[name]):
            tp.pack(model)
        return
    packed, x, expected = two_tasks(model, "per_task", tmp_path / "a.keras")
    packed.select_task("a")
    np.testing.assert_array_equal(packed.predict(x, verbose=0), expected)

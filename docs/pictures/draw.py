"""Draws the pictures of the docs, each in English and in Chinese: python docs/pictures/draw.py

Plain SVG without a library; a test sees that what is committed is what this draws. Texts are "English|中文".
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
FONT = "system-ui, 'Noto Sans', 'PingFang SC', 'Noto Sans CJK SC', 'Microsoft YaHei', sans-serif"
INK, SOFT, LINE = "#1b1f24", "#57606a", "#8c959f"
BLUE, GREEN, YELLOW, RED, VIOLET, GREY = "#cfe3fb", "#cdeed4", "#fbecc0", "#fbd5d0", "#e4d7f7", "#eef0f2"
COLOURS = (BLUE, GREEN, YELLOW, RED)


class Drawing:
    """An SVG that grows; all numbers are pixels from the upper left corner."""

    def __init__(self, width: int, height: int, title: str, language: int) -> None:
        self.language = language
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="{FONT}" font-size="14">',
            f"<title>{self.say(title)}</title>",
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
        ]

    def say(self, text: str) -> str:
        return escape(text.split("|")[min(self.language, text.count("|"))])

    def box(
        self, x: float, y: float, width: float, height: float, text: str = "", fill: str = GREY, small: str = ""
    ) -> None:
        """A box with a word in its middle, and a smaller one below it."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="{LINE}"/>'
        )
        middle = y + height / 2
        if text:
            self.text(x + width / 2, middle + (-3 if small else 5), text, anchor="middle")
        if small:
            self.text(x + width / 2, middle + 15, small, anchor="middle", size=11.5, fill=SOFT)

    def cell(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="#fff" stroke-width="1.5"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str = "start",
        size: float = 14,
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{weight}>'
            f"{self.say(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = " ".join(f"{'ML'[number > 0]}{x} {y}" for number, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6"{dash} marker-end="url(#tip)"/>'
        )

    def finish(self) -> str:
        return "\n".join([*self.parts, "</svg>\n"])


def house(language: int) -> str:
    """The rooms, and which way imports go."""
    rows = (
        ("cli", "commands|命令"),
        ("serve", "HTTP, the page|HTTP、网页"),
        ("api", "hanlin.load, hanlin.train|hanlin.load、hanlin.train"),
        ("checking · planner · diagnosis", "before anything runs|运行之前"),
        ("run", "all components meet in assemble.py|所有组件在 assemble.py 汇合"),
        ("evaluation", "tasks, metrics, decisions|任务、指标、决策"),
        ("training · generate", "one step and loop; one search|一个训练步与循环；一个搜索"),
        ("tuning · parallel · checkpoint", "know no family by name|不认识任何模型系列的名字"),
        ("adapters", "files of what was tuned|微调成果的文件"),
        ("models", "chatglm2 · cpm1 · cpm1_t5 · cpm2 · cpm_bee|chatglm2 · cpm1 · cpm1_t5 · cpm2 · cpm_bee"),
        ("layers · data · tokens · formats", "bricks|组件"),
        ("recipe", "settings|设置"),
        ("core", "samples, plans, errors, files, ranks|样本、切分表、错误、文件、进程"),
    )
    drawing = Drawing(720, 40 + 40 * len(rows), "The house|这座房子", language)
    drawing.text(40, 22, "A room imports from rooms below it only.|每个房间只从下面的房间导入。", fill=SOFT, size=13)
    for number, (room, holds) in enumerate(rows):
        y = 34 + 40 * number
        fill = GREEN if room == "models" else YELLOW if room == "run" else BLUE
        drawing.box(40, y, 260, 32, room, fill)
        drawing.text(316, y + 21, holds, size=13)
    drawing.arrow((18, 34), (18, 34 + 40 * len(rows) - 8))
    return drawing.finish()


def route(language: int) -> str:
    """What a batch passes in one step."""
    drawing = Drawing(900, 345, "The route of a batch|一个批次的路线", language)
    top = (
        ("records|记录", "data/sources"),
        ("samples|样本", "Processor.sample"),
        ("rows of an epoch|一轮的行", "lengths, run.seed|长度、run.seed"),
        ("batch|批次", "Processor.collate"),
    )
    for number, (name, where) in enumerate(top):
        drawing.box(20 + 185 * number, 40, 150, 56, name, BLUE, where)
        if number:
            drawing.arrow((170 + 185 * (number - 1), 68), (203 + 185 * (number - 1), 68))
    drawing.text(20, 24, "a thread, one batch ahead|一个线程，提前一批", size=12, fill=SOFT)
    drawing.arrow((650, 96), (650, 134))
    drawing.text(662, 120, "to the device|送上设备", size=12, fill=SOFT)
    drawing.box(20, 136, 725, 178, "", "#fff")
    drawing.text(34, 158, "Step.run, every rank|Step.run，每个进程", bold=True, size=13)
    steps = (
        ("micro-batches|微批次", "loss tokens counted|数出计损词元", YELLOW),
        ("forward|前向", "summed loss|损失总和", GREEN),
        ("backward|反向", "gradients travel|梯度同时传送", GREEN),
        ("one division|除一次", "finite? clip|有限？裁剪", YELLOW),
    )
    for number, (name, small, fill) in enumerate(steps):
        x = 585 - 180 * number
        drawing.box(x, 172, 140, 52, name, fill, small)
        if number:
            drawing.arrow((x + 180, 198), (x + 142, 198))
    drawing.arrow((115, 224), (115, 250))
    drawing.box(45, 252, 140, 48, "optimizer|优化器", YELLOW, "schedule|学习率曲线")
    drawing.arrow((185, 276), (263, 276))
    drawing.box(265, 252, 140, 48, "StepReport", GREY, "loss, norm, time|损失、范数、时间")
    drawing.arrow((405, 276), (765, 276))
    for number, name in enumerate(("log|日志", "evaluate|评测", "save|保存")):
        drawing.box(767, 208 + 44 * number, 112, 36, name, VIOLET)
    drawing.text(767, 198, "the loop|循环", size=12, fill=SOFT)
    return drawing.finish()


def packing(language: int) -> str:
    """Three samples padded, and packed into one row with the mask that keeps them apart."""
    drawing = Drawing(900, 330, "Padding, packing and the mask|填充、打包与掩码", language)
    lengths = (5, 3, 4)
    size, left = 24, 20
    drawing.text(left, 24, "padded: 12 of 18 positions count|填充：18 个位置中 12 个有用", bold=True, size=13)
    for row, length in enumerate((5, 3, 4)):
        for column in range(6):
            drawing.cell(
                left + size * column, 38 + (size + 6) * row, size, size, COLOURS[row] if column < length else GREY
            )
    drawing.text(left, 168, "packed: one row, 12 of 12|打包：一行，12 个中 12 个", bold=True, size=13)
    owners = [number for number, length in enumerate(lengths) for _ in range(length)]
    for column, owner in enumerate(owners):
        drawing.cell(left + size * column, 182, size, size, COLOURS[owner])
    drawing.text(left, 232, "positions|位置", size=12, fill=SOFT)
    place = [number for length in lengths for number in range(length)]
    for column, number in enumerate(place):
        drawing.text(left + size * column + 12, 252, str(number), anchor="middle", size=12)
    drawing.text(
        left,
        286,
        "Each sample counts its positions from 0;|每个样本的位置各自从 0 数起；",
        size=12.5,
    )
    drawing.text(left, 306, "the loss is that of the samples alone.|损失与各样本单独计算时相同。", size=12.5)
    right, top, small = 470, 38, 21
    drawing.text(right, 24, "who sees whom in that row|这一行里谁看得见谁", bold=True, size=13)
    for query, owner in enumerate(owners):
        for key, other in enumerate(owners):
            sees = owner == other and key <= query
            fill = COLOURS[owner] if sees else GREY
            drawing.cell(right + small * key, top + small * query, small, small, fill)
    drawing.text(right + small * 12 + 12, top + 14, "queries ↓|查询 ↓", size=12, fill=SOFT)
    drawing.text(right, top + small * 12 + 18, "keys →|键 →", size=12, fill=SOFT)
    drawing.text(right + small * 12 + 12, 130, "grey: not seen; other|灰色：看不见；", size=12.5)
    drawing.text(right + small * 12 + 12, 150, "samples are not computed,|其他样本不参与计算，", size=12.5)
    drawing.text(right + small * 12 + 12, 170, "so packing costs no square|打包没有平方级的开销", size=12.5)
    return drawing.finish()


def layouts(language: int) -> str:
    """Sixteen processes: data 4, tensor 2, pipe 2."""
    drawing = Drawing(900, 350, "A layout of 16 processes|16 个进程的并行布局", language)
    drawing.text(20, 24, "parallel: {data: 4, tensor: 2, pipe: 2, shard: parameters}", bold=True, size=13)
    for stage in range(2):
        y = 62 + 130 * stage
        drawing.text(
            20, y + 34, ("blocks 0 to 13|第 0 到 13 块", "blocks 14 to 27, head|第 14 到 27 块、输出头")[stage], size=13
        )
        drawing.text(20, y + 54, f"pipe {stage}", size=12, fill=SOFT)
        for data in range(4):
            x = 200 + 168 * data
            drawing.box(x, y, 152, 84, "", "#fff")
            for tensor in range(2):
                rank = 8 * stage + 2 * data + tensor
                drawing.box(x + 8 + 70 * tensor, y + 24, 64, 48, str(rank), COLOURS[data], f"tensor {tensor}")
            if stage == 0:
                drawing.text(x + 76, y - 10, f"data {data}", anchor="middle", size=12.5)
                drawing.arrow((x + 76, y + 84), (x + 76, y + 128))
    drawing.text(208, 166, "hidden states|隐藏状态", size=12, fill=SOFT)
    notes = (
        "Colour: rows of their own. tensor: one half of every matrix each; two sums per block."
        "|颜色：各有自己的行。tensor：每个矩阵各一半；每块求和两次。",
        "Along data, weights, gradients and optimizer are divided as well (shard), and gathered block by block."
        "|沿 data 方向，权重、梯度和优化器也分片（shard），逐块收集。",
    )
    for number, note in enumerate(notes):
        drawing.text(20, 308 + 22 * number, note, size=12.5)
    return drawing.finish()


PLANNED = (
    ("full, adamw|全量，adamw", (23.26, 23.26, 46.52, 10.56)),
    ("full, adamw_8bit|全量，adamw_8bit", (23.26, 23.26, 12.5, 10.56)),
    ("LoRA", (11.64, 0.01, 0.03, 0.97)),
    ("LoRA, quantise: nf4|LoRA，quantise: nf4", (3.75, 0.01, 0.03, 0.97)),
)
"""GiB of weights, gradients, optimizer and the rest of the peak: `hanlin plan` of chatglm2_chat_lora with
model.size=6b model.base=null data.max_length=2048 train.batch_size=1, one device, and the settings named."""


def memory(language: int) -> str:
    """Bars of what `hanlin plan` says of ChatGLM2-6B on one card."""
    drawing = Drawing(900, 330, "Where memory goes|显存用在哪里", language)
    drawing.text(
        20,
        24,
        "ChatGLM2-6B on one card, a row of 2,048 tokens, bf16, recomputed, by hanlin plan: GiB"
        "|ChatGLM2-6B，一张卡，一行 2,048 个词元，bf16，激活重算，按 hanlin plan：GiB",
        bold=True,
        size=13,
    )
    names = ("weights|权重", "gradients|梯度", "optimizer|优化器", "the rest|其余")
    fills = (BLUE, RED, YELLOW, GREEN)
    scale = 600 / max(sum(parts) for _, parts in PLANNED)
    for number, (name, parts) in enumerate(PLANNED):
        y = 48 + 54 * number
        drawing.text(20, y + 25, name, size=13)
        x = 205.0
        for value, fill in zip(parts, fills, strict=True):
            if value * scale >= 1:
                drawing.cell(round(x, 1), y, round(value * scale, 1), 38, fill)
            if value * scale > 34:
                drawing.text(round(x + value * scale / 2, 1), y + 24, f"{value:.1f}", anchor="middle", size=12)
            x += value * scale
        drawing.text(round(x + 10, 1), y + 24, f"{sum(parts):.1f}", size=13, bold=True)
    for number, (name, fill) in enumerate(zip(names, fills, strict=True)):
        drawing.cell(205 + 130 * number, 276, 18, 18, fill)
        drawing.text(230 + 130 * number, 290, name, size=13)
    drawing.text(
        20,
        318,
        "The rest: activations, copies, head and loss at the moment of the peak."
        "|其余：峰值时刻的激活、副本、输出头与损失。",
        size=12,
        fill=SOFT,
    )
    return drawing.finish()


PICTURES: dict[str, Callable[[int], str]] = {
    "house": house,
    "route": route,
    "packing": packing,
    "layouts": layouts,
    "memory": memory,
}


def draw_all() -> dict[str, str]:
    """The text of each file by its name."""
    endings = (".svg", ".zh-CN.svg")
    return {name + ending: draw(number) for name, draw in PICTURES.items() for number, ending in enumerate(endings)}


if __name__ == "__main__":
    for name, text in draw_all().items():
        (FOLDER / name).write_text(text, "utf-8")

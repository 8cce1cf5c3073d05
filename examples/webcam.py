"""Track points through a camera's frames: click to add one, Escape to quit. Needs `opencv-python` for its window."""

import sys
import time

import cv2
import torch

from chrono_features import ChronoBackbone, as_video, grid_queries

WINDOW = "chrono-features"


def main(source: int | str = 0) -> None:
    model = ChronoBackbone.from_pretrained("chrono-tiny", window=(0, 0))  # no future frames, so no delay
    camera = cv2.VideoCapture(source)
    ok, image = camera.read()
    if not ok:
        raise SystemExit(f"camera {source!r} gives no frames")
    size = image.shape[:2]
    tracker = model.point_tracker(grid_queries(5, size), image_size=size)

    def click(event: int, x: int, y: int, *_: object) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            tracker.add(torch.tensor([[x + 0.5, y + 0.5]]))

    cv2.namedWindow(WINDOW)
    cv2.setMouseCallback(WINDOW, click)
    while ok:
        began = time.perf_counter()
        found = tracker(as_video([image], bgr=True)[0, 0])
        for (x, y), visible in zip(found.xy.tolist(), found.visible.tolist(), strict=True):
            cv2.circle(image, (int(x), int(y)), 4, (0, 255, 0), cv2.FILLED if visible else 1, cv2.LINE_AA)
        rate = f"{1 / (time.perf_counter() - began):.1f} frames/s"
        cv2.putText(image, rate, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
        cv2.imshow(WINDOW, image)
        if cv2.waitKey(1) == 27:  # Escape
            break
        ok, image = camera.read()
    camera.release()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else (sys.argv[1:] or [0])[0])

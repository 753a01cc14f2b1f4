// Shows every scene's image of the epoch that the slider selects in "rows".
const slider = document.getElementById("validation");
const shown = document.getElementById("shown");
function show() {
  const row = rows[slider.value];
  shown.textContent = row.text;
  for (const image of document.querySelectorAll("img[data-scene]")) {
    image.src = "validation/" + row.prefix + image.dataset.scene + ".jpg";
    image.parentElement.href = image.src;
  }
}
slider.oninput = show;
show();
